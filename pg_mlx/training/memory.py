"""How many rows go through the model at a time, and whether layers are computed twice, so that memory suffices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..checkpoint.footprint import float_bytes, needed_bytes, weight_bytes
from ..checkpoint.layouts import VISION, weight_specs
from ..checkpoint.load import compute_dtype
from ..checkpoint.open import Checkpoint
from ..errors import InputError
from ..memory.residency import SMALL_BYTES
from ..memory.size import format_size, machine_bytes
from ..ops import device
from .adapting import count_learnt
from .dataset import Lengths
from .features import FEATURE_BYTES
from .needs import Needs, Shape, training_needs
from .settings import TrainSettings

SHARE = 0.6
"""The share of the machine's memory that a run may take: the rest is for the system, other programs and what the
estimate leaves out."""


@dataclass(frozen=True)
class StepPlan:
    """What was decided. rows: at a time, in each process. checkpointing: whether layers are computed twice. needs: what
    it should take, or None for a run that goes on."""

    rows: int
    checkpointing: bool
    needs: Needs | None = None
    features: int = 0
    """Bytes of features that are kept, beside `needs`."""

    @property
    def total(self) -> int:
        """All bytes that the run should hold at its peak."""
        return self.features + (self.needs.total if self.needs else 0)

    def made(self) -> dict[str, Any]:
        """For run.json."""
        return {"rows": self.rows, "checkpointing": self.checkpointing}

    def lines(self, rows: int) -> list[str]:
        """For people. rows: of a step."""
        how = "layers are computed twice (--grad-checkpoint)" if self.checkpointing else "activations are kept"
        pieces = f"{self.rows} rows at a time" if self.rows < rows else "all rows of a step at a time"
        lines = [f"how: {pieces}, {how}"]
        if self.needs is not None:
            parts = {
                "weights": self.needs.weights,
                "what is learnt": self.needs.learnt,
                "activations": self.needs.activations,
                "features of pictures": self.features,
            }
            shown = ", ".join(f"{name} {format_size(size)}" for name, size in parts.items() if size)
            lines.append(f"memory: about {format_size(self.total)} ({shown})")
        return lines


def choose(
    checkpoint: Checkpoint,
    settings: TrainSettings,
    lengths: Sequence[Lengths],
    pictures: int,
    size: int,
    made: dict[str, Any] | None = None,
) -> StepPlan:
    """The most rows at a time that fit, activations kept if that fits too.

    lengths: of each set of data. pictures: different ones. size: processes that share a step. made: what was decided
    when the run began, which stays. Raises InputError if the smallest way takes more than --memory-limit.
    """
    if made is not None:
        return StepPlan(int(made["rows"]), bool(made["checkpointing"]))
    limit = settings.memory_limit or int(SHARE * machine_bytes())
    known = settings.grad_checkpoint
    rows = min(settings.batch_size, -(-settings.rows // size))
    ways = [(rows, checkpointing) for checkpointing in ((False, True) if known is None else (known,))]
    while rows > 1:
        rows = -(-rows // 2)
        ways.append((rows, True if known is None else known))
    for way in ways:
        chosen = _estimate(checkpoint, settings, lengths, pictures, *way)
        if chosen.total <= limit:
            return chosen
    asking = needed_bytes(checkpoint, compute_dtype(settings.dtype))
    least = max(chosen.total, asking)
    if settings.memory_limit is not None and least > limit:
        raise InputError(
            f"this run needs about {format_size(least)} of memory even with one row at a time, more than "
            f"--memory-limit {format_size(limit)}; a 4-bit base (convert -q) or smaller pictures need less"
        )
    return chosen


def _estimate(
    checkpoint: Checkpoint,
    settings: TrainSettings,
    lengths: Sequence[Lengths],
    pictures: int,
    rows: int,
    checkpointing: bool,
) -> StepPlan:
    config, dtype, full = checkpoint.config, compute_dtype(settings.dtype), settings.fine_tune_type == "full"
    patches = config.vision.num_patches
    longest = max(p + s for one in lengths for p, s in zip(one.prefix, one.suffix, strict=True))
    suffix = rows * max(max(one.suffix) for one in lengths)
    shape = Shape(rows, patches + longest - 1, suffix, rows if settings.learns_images else 0)
    learnt = _full_count(checkpoint, settings) if full else count_learnt(config, settings.low_rank())
    needs = training_needs(
        config,
        shape,
        weights=_weights(checkpoint, dtype),
        learnt=learnt,
        dtype=dtype,
        checkpoint=checkpointing,
        full=full,
        dropout=settings.lora_dropout > 0,
        loss=settings.loss_options(),
    )
    each = patches * config.text.hidden_size * dtype.size
    features = 0 if settings.learns_images else min(FEATURE_BYTES, pictures * each)
    return StepPlan(rows, checkpointing, needs, features)


def _weights(checkpoint: Checkpoint, dtype: mx.Dtype) -> int:
    """As they are loaded: the CPU backend holds small packed models in float32."""
    stored = weight_bytes(checkpoint, dtype)
    if checkpoint.is_quantized() and not device.gpu_ops() and dtype == mx.float32:
        floats = float_bytes(checkpoint)
        return floats if floats - stored <= SMALL_BYTES else stored
    return stored


def _full_count(checkpoint: Checkpoint, settings: TrainSettings) -> int:
    """Numbers that a full fine-tuning learns."""
    total = 0
    for spec in weight_specs(checkpoint.config):
        of_tower = spec.sources[0].startswith(VISION)
        of_decoder = spec.target.startswith("language_model.")
        if of_decoder or (settings.train_vision if of_tower else settings.learns_images):
            total += sum(math.prod(shape) for _, shape in spec.expected())
    return total
