"""The model card of what was learnt: README.md of a run folder, as the hub shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import __version__
from .settings import LEARNING_RATES, TrainSettings
from .state import RunProgress

FIGURES = {
    "exact": "exact answers",
    "map": "mAP",
    "map50": "mAP at IoU .5",
    "recall50": "recall at IoU .5",
    "precision50": "precision at IoU .5",
    "mask_iou": "mask IoU",
}
"""Scores by their name in JSON, as people call them."""


def model_card(settings: TrainSettings, base: str, log: Sequence[dict[str, Any]], progress: RunProgress) -> str:
    """Markdown with the hub's header. log: the lines of log.jsonl. base: a hub repository, or what the model is
    called."""
    full = settings.fine_tune_type == "full"
    kind = {"lora": "a LoRA adapter", "dora": "a DoRA adapter", "full": "all weights, fine-tuned"}
    use = "--model ./model" if full else f"--model {base} --adapter-path ."
    best = ""
    if progress.best_step is not None:
        at = "the same" if progress.best_step == progress.step else f"step {progress.best_step}"
        best = f" `best/` holds {at}, after the best evaluation."
    lines = [
        "---",
        f"base_model: {base}",
        f"library_name: {'mlx' if full else 'peft'}",
        "tags: [paligemma, mlx, pg_mlx]",
        "pipeline_tag: image-text-to-text",
        "---",
        "",
        f"# {base.rstrip('/').rpartition('/')[2]}, fine-tuned",
        "",
        f"This is {kind[settings.fine_tune_type]} for {base}, trained with pg_mlx {__version__}: "
        f"{progress.step} steps of {settings.rows} rows, {progress.trained_tokens:,} tokens of answers.{best}",
        "",
        f'    pg-mlx generate {use} --image photo.jpg --prompt "..."',
        "",
        *_scores(log),
        "## How it was trained",
        "",
        *_settings(settings),
    ]
    return "\n".join(lines) + "\n"


def _scores(log: Sequence[dict[str, Any]]) -> list[str]:
    evaluations = [line for line in log if line["event"] == "evaluation"]
    if not evaluations:
        return []
    names = [name for name in FIGURES if any(line["scores"].get(name) is not None for line in evaluations)]
    rows = [
        "## Scores on validation data",
        "",
        f"| step | loss | {' | '.join(FIGURES[name] for name in names)} |" if names else "| step | loss |",
        f"|--:|--:|{'--:|' * len(names)}",
    ]
    for line in evaluations:
        cells = [_shown(line["loss"]), *(_shown(line["scores"].get(name)) for name in names)]
        rows.append(f"| {line['step']}{' (best)' if line is _best(evaluations) else ''} | {' | '.join(cells)} |")
    return [*rows, ""]


def _best(evaluations: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next((line for line in reversed(evaluations) if line["best"]), None)


def _settings(settings: TrainSettings) -> list[str]:
    rate = settings.learning_rate or LEARNING_RATES[settings.fine_tune_type]
    facts = [
        f"{settings.optimizer}, learning rate {rate:g}, schedule {settings.schedule}, clip {settings.clip:g}, "
        f"weight decay {settings.weight_decay:g}, seed {settings.seed}",
    ]
    if settings.fine_tune_type != "full":
        facts.append(f"rank {settings.lora_rank}, alpha {settings.lora_alpha:g}, dropout {settings.lora_dropout:g}")
    tower = ", the vision tower and the projector" if settings.train_vision else ""
    facts.append(f"what learns: the decoder{tower or (' and the projector' if settings.train_projector else '')}")
    if settings.mix:
        facts.append(f"mixed in, so that old skills stay: {len(settings.mix)} other sets of data")
    if settings.augment:
        facts.append(f"augmentation: {', '.join(settings.augment)}")
    return [f"- {fact}" for fact in facts]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
