"""Bits by budget: sensitivities are measured on pictures, and the bits that a target allows go where they gain most.

A result of the same bits everywhere is written first. It answers about the pictures if the source does not fit into
memory (see answers.py); it is judged, to be compared with; and it is removed. The bits that are chosen then are a
table, which is kept beside the weights and is a recipe as well: with it the same bytes are written again, and nothing
is measured.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.open import Checkpoint, open_local
from ..files.shards import ShardWriter
from ..memory.size import format_size
from ..ops.device import dtype_name
from ..processor import Processor
from ..quantization import Recipe
from ..quantization.fast_widths import is_fast
from ..quantization.modes import AFFINE_BITS
from .allocate import MEASURED_BITS, Allocation, Sensitive, allocate, allocate_fast
from .answers import answered
from .bit_table import BitTable
from .layerwise import Streamed
from .metrics import mean_and_error, predict
from .plan import make_plan
from .quality import read
from .samples import Sample
from .sensitivity import sensitivities
from .side_files import write_side_files
from .target import FEWEST, MAX_MEASURING, MOST, Budget, Group, SizeTarget
from .tried import Tried
from .weights import Packer, Progress, write_weights

FILE = "bits.json"
"""The table, in the folder that is written."""

_SHARES = {"written": 0.03, "answers": 0.12, "judged": 0.1, "measured": 0.75}
"""What part of the time each step takes, roughly; for the progress."""


@dataclass(frozen=True)
class ChosenBits:
    """The bits that a target got, and what they were chosen by."""

    target: SizeTarget
    table: BitTable
    sensitivities: dict[str, list[float]]
    """KL in nats of each kind and layer alone at MEASURED_BITS."""
    measured_on: int
    """Pictures."""
    reached: int
    """Bytes that the target is about."""
    predicted: float
    """KL in nats by the nearest codes."""
    slow: list[str]
    """Kinds of matrices that a token reads without Metal's fast kernel."""
    tried: list[Tried]
    """The same bits everywhere, and what was predicted for other sizes."""

    @property
    def recipe(self) -> Recipe:
        """The bits as rules."""
        return self.table.recipe().by(self.target.method)

    def to_markdown(self) -> str:
        """A line for the model card."""
        slow = f"; without Metal's fast kernel for one token: {', '.join(self.slow)}" if self.slow else ""
        read = " read for each token" if self.target.what == "per-token" else ""
        return (
            f"bits chosen for {self.target.option}: {format_size(self.reached)}{read}, by the divergence that each "
            f"matrix makes alone at {MEASURED_BITS} bits on {self.measured_on} pictures{slow}"
        )

    def table_to_markdown(self) -> str:
        """The table with a line about it."""
        how = f"Bits of each layer, from left to right; as a recipe for the same shape: `--q-recipe {FILE}`."
        return f"{how}\n\n```\n{self.table.text()}\n```"

    def to_json(self, source: str) -> dict[str, Any]:
        """What goes into FILE. source: the name of the source."""
        return {
            **self.table.to_json(),
            "target": self.target.option,
            "reached_bytes": self.reached,
            "source": source,
            "measured": {
                "pictures": self.measured_on,
                "bits": MEASURED_BITS,
                "kl": {kind: [float(f"{kl:.4g}") for kl in own] for kind, own in self.sensitivities.items()},
            },
        }

    def write(self, folder: Path, source: str) -> None:
        """Write FILE."""
        (folder / FILE).write_text(json.dumps(self.to_json(source), indent=1) + "\n")


def choose_bits(
    checkpoint: Checkpoint,
    target: SizeTarget,
    budget: Budget,
    folder: Path,
    dtype: mx.Dtype,
    samples: tuple[Sequence[Sample], Sequence[Sample]],
    header_bytes: int,
    report: Callable[[str, float], None],
) -> ChosenBits:
    """Measure and choose. folder: for what is written and removed again. dtype: of what stays float, and of scales.
    samples: those that calibrate, of which MAX_MEASURING measure, and those that judge. header_bytes: of a shard.
    report: called with what is being done and the share of the time.

    Raises InputError for tensors that cannot be read, and PgMlxError for models whose numbers are not finite.
    """
    steps = list(_SHARES)

    def at(step: str, what: str, done: int, total: int) -> None:
        before = sum(_SHARES[name] for name in steps[: steps.index(step)])
        report(what, before + _SHARES[step] * done / max(1, total))

    bits = budget.answering_bits(dtype.size)
    plan = make_plan(checkpoint, target.recipe(bits))
    uniform = folder / "uniform"
    uniform.mkdir()
    write_side_files(uniform, checkpoint, plan.config, dtype_name(dtype), {})
    size = sum(module.bytes_after(dtype.size) for module in plan.modules)
    written: Progress = lambda what, done, total: at("written", what, done, total)  # noqa: E731
    write_weights(
        plan, checkpoint.source, ShardWriter(uniform, header_bytes=header_bytes), Packer(dtype), written, size
    )
    weights = sum(path.stat().st_size for path in uniform.glob("*.safetensors"))
    processor = Processor.from_folder(uniform, plan.config.vision.image_size)
    asked = samples[0][:MAX_MEASURING], samples[1]
    (pictures, texts), judging = answered(
        checkpoint,
        uniform,
        asked,
        processor,
        lambda done, total: at("answers", f"answers, {done} of {total}", done, total),
    )
    vocabulary = processor.tokenizer.vocab_size
    at("judged", "judging the same bits everywhere", 0, 1)
    source = read("source", Streamed(checkpoint, mx.float32), *judging)
    result = read("result", Streamed(open_local(uniform), mx.float32), *judging)
    kl = predict(source, result, vocabulary).kl
    mean, error = mean_and_error(kl, [len(text.answer) for text in judging[1]])
    tried = [Tried(f"{bits} bits everywhere, rtn", weights, mean, error)]
    del source, result, judging
    mx.clear_cache()
    shutil.rmtree(uniform)
    specs = {name: spec for spec in checkpoint.specs for name in spec.sources}
    found = sensitivities(
        checkpoint,
        [specs[group.modules[0].name] for group in budget.groups],
        dtype,
        pictures,
        texts,
        vocabulary,
        lambda done, total: at("measured", "measuring what each matrix is worth", done, total),
    )
    return chosen(target, budget, found, dtype.size, len(pictures), tried)


def chosen(
    target: SizeTarget,
    budget: Budget,
    found: Sequence[float],
    item_bytes: int,
    pictures: int,
    tried: Sequence[Tried] = (),
    fewest: int = FEWEST,
) -> ChosenBits:
    """The bits, `fewest` or more, for a budget by the sensitivities `found` of its groups. pictures: how many measured
    them."""
    items = [
        Sensitive(kl, {bits: group.bytes_at(bits, item_bytes) for bits in AFFINE_BITS if bits >= fewest})
        for kl, group in zip(found, budget.groups, strict=True)
    ]
    best = allocate_fast(items, [group.fast for group in budget.groups], budget.limit)
    bits: dict[str, list[int | None]] = {}
    measured: dict[str, list[float]] = {}
    given = {(group.kind, group.layer): width for group, width in zip(budget.groups, best.bits, strict=True)}
    given |= {(group.kind, group.layer): MOST for group in budget.settled}
    ordered: list[Group] = sorted([*budget.groups, *budget.settled], key=lambda group: group.layer)
    for kind in dict.fromkeys(group.kind for group in [*budget.settled, *budget.groups]):
        layers = {group.layer: group for group in ordered if group.kind == kind}
        bits[kind] = [given.get((kind, layer)) for layer in range(max(layers) + 1)]
    for kl, group in zip(found, budget.groups, strict=True):
        measured.setdefault(group.kind, []).append(kl)
    slow = [
        group.kind
        for group, width in zip(budget.groups, best.bits, strict=True)
        if width not in group.fast and any(is_fast(group.modules[0].padded[1], other) for other in AFFINE_BITS)
    ]
    about = f"bits by measured divergence for {target.option}"
    return ChosenBits(
        target,
        BitTable("bits by budget", about, bits),
        measured,
        pictures,
        best.bytes + budget.rest,
        best.kl,
        list(dict.fromkeys(slow)),
        [*tried, *_predicted(allocate(items, sum(max(item.bytes.values()) for item in items)), budget)],
    )


def _predicted(steps: Sequence[Allocation], budget: Budget) -> list[Tried]:
    """Some of the allocations from the fewest bits to the most, as points of a curve."""
    some = [*steps[:: max(1, len(steps) // 40)], steps[-1]]
    return [Tried("predicted, rtn", step.bytes + budget.file_rest, step.kl, None) for step in some]
