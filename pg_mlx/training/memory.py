"""How many rows go through the model at a time, and whether layers are computed twice, so that memory suffices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint.open import Checkpoint
from ..memory.size import format_size
from .dataset import Lengths
from .settings import TrainSettings


@dataclass(frozen=True)
class Chosen:
    """What was decided, and why."""

    rows: int
    """At a time, in each process."""
    checkpointing: bool
    needed_bytes: int | None = None
    """The most memory that the run should take; None where it was not computed."""

    def made(self) -> dict[str, Any]:
        """For run.json."""
        return {"rows": self.rows, "checkpointing": self.checkpointing}

    def lines(self, rows: int) -> list[str]:
        """For people. rows: of a step."""
        how = "layers are computed twice (--grad-checkpoint)" if self.checkpointing else "activations are kept"
        pieces = f"{self.rows} rows at a time" if self.rows < rows else "all rows of a step at a time"
        lines = [f"how: {pieces}, {how}"]
        if self.needed_bytes is not None:
            lines.append(f"memory: about {format_size(self.needed_bytes)}")
        return lines


def choose(
    checkpoint: Checkpoint, settings: TrainSettings, lengths: Sequence[Lengths], size: int, made: dict[str, Any] | None
) -> Chosen:
    """Decide. size: processes that share a step. made: what was decided when the run began. Raises InputError if even
    the smallest way needs more than --memory-limit."""
    if made is not None:
        return Chosen(int(made["rows"]), bool(made["checkpointing"]))
    rows = min(settings.batch_size, -(-settings.rows // size))
    return Chosen(rows, bool(settings.grad_checkpoint))
