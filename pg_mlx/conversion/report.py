"""What a conversion reports: its figures, and the model card (README.md) of the converted folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ..quantization import METHODS, Recipe
from . import tried
from .by_budget import ChosenBits
from .candidates import Chosen
from .quality import Quality


@dataclass(frozen=True)
class Report:
    """What a conversion did."""

    target: Path
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    left_float: list[str]
    seconds: float
    peak_memory_bytes: int
    quality: Quality | None
    choice: Chosen | None = None
    """Whether the calibrated weights were the best, if it was a calibrated conversion."""
    bits: ChosenBits | None = None
    """The bits that were chosen, if it was a conversion to a size."""
    tried: list[tried.Tried] = field(default_factory=list)
    """What it tried, if it had a choice."""


def all_tried(
    bits: ChosenBits | None, choice: Chosen | None, quality: Quality | None, written: int
) -> list[tried.Tried]:
    """Everything that a conversion with a choice measured or predicted; nothing for one without. written: bytes."""
    name = "chosen bits" if bits else "these bits"
    found = list(bits.tried) if bits else []
    if choice:
        found += [tried.Tried(f"{name}, {one.method}", written, one.kl_mean, one.kl_error) for one in choice.judgements]
    elif bits and quality:
        found.append(tried.Tried(f"{name}, {bits.target.method}", written, quality.kl_mean, quality.kl_error or 0.0))
    return found


def model_card(source: str, recipe: Recipe | None, report: Report) -> str:
    """Markdown with the front matter that the hub reads."""
    is_repo = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    front = ["---", "license: gemma", "library_name: mlx", "pipeline_tag: image-text-to-text"]
    front += ["tags:", "- mlx", "- paligemma"]
    if is_repo:
        front += [f"base_model: {source}"]
    name = report.target.name
    how = f"{recipe.name}: {recipe.about}" if recipe else "not quantized further"
    body = [
        "---",
        "",
        f"# {name}",
        "",
        f"PaliGemma, converted from `{source if is_repo else source.rsplit('/', 1)[-1]}` for MLX by pg_mlx.",
        "",
        f"- packing: {how}",
        f"- size: {report.bytes_after / 1e9:.2f} GB, {report.bits_per_weight:.2f} bits a weight "
        f"(before: {report.bytes_before / 1e9:.2f} GB)",
    ]
    if report.bits:
        body.append(f"- {report.bits.to_markdown()}")
    if report.choice:
        body.append(f"- {report.choice.to_markdown()}")
    elif recipe and recipe.method != "rtn":
        body.append(f"- method: {recipe.method}, {METHODS[recipe.method]}")
    if report.left_float:
        body.append(f"- left float, because no whole groups fit: {len(report.left_float)} modules")
    body += ["", '    python generate.py --model THIS_FOLDER --image photo.jpg --prompt "caption en"', ""]
    if report.bits:
        body += ["## Bits", "", report.bits.table_to_markdown(), ""]
    if report.tried:
        body += [f"![Divergence against the size of the weights, for what was tried]({tried.FILE})", ""]
    if report.quality:
        body += ["## Compared with the source", "", report.quality.to_markdown(), ""]
    body += ["The weights are subject to the [Gemma terms of use](https://ai.google.dev/gemma/terms).", ""]
    return "\n".join([*front, *body])


def write_cards(folder: Path, source: str, recipe: Recipe | None, report: Report) -> None:
    """Write quality.json, the picture of what was tried and README.md into a folder, as far as the report has them."""
    if report.quality:
        quality = replace(report.quality, tried=[one._asdict() for one in report.tried] or None)
        (folder / "quality.json").write_text(json.dumps(asdict(quality), indent=1) + "\n")
    if report.tried:
        tried.draw_tried(report.tried).save(folder / tried.FILE)
    (folder / "README.md").write_text(model_card(source, recipe, report))
