"""What every part of a report gets, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from ...ops import device
from ...paligemma import PaliGemma
from ...processor import Processor
from .shapes import Shapes


class NotHereError(Exception):
    """This machine cannot answer the question, or lacks what it needs: the part is left out. The message says why."""


@dataclass(frozen=True)
class Found:
    """What a part has found: words, and figures for JSON."""

    answer: str
    figures: dict[str, Any]
    healthy: bool = True
    """False if a check was wrong."""


@dataclass(frozen=True)
class Part:
    """A question, and how it is asked. decides: what its answer decides. seconds: how long it takes, a guess."""

    name: str
    question: str
    decides: str
    seconds: float
    run: Callable[[Context], Found]


@dataclass
class Context:
    """shapes: sizes of what is measured. pace: a part's seconds are multiplied by it. given: loads the user's model.
    private: names of its files, which no message may show."""

    shapes: Shapes
    pace: float = 1.0
    given: Callable[[], tuple[PaliGemma, Processor]] | None = None
    private: tuple[str, ...] = ()
    dtype: mx.Dtype = field(default_factory=lambda: device.default_dtype())
    _held: dict[str, PaliGemma] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether every case is measured; else the most important ones."""
        return self.pace >= 1

    def model(self, family: str) -> PaliGemma:
        """A model of this family with random weights. One is held at a time."""
        if family not in self._held:
            self.release()
            self._held[family] = self.shapes.model(family, self.dtype)
        return self._held[family]

    def release(self) -> None:
        """Hold no model any more."""
        self._held.clear()
        mx.clear_cache()

    def budget(self, seconds: float) -> float:
        """So many seconds of a full report, in this one."""
        return seconds * self.pace


def need_metal() -> None:
    """Raises NotHereError where there is no Metal."""
    if not mx.metal.is_available():
        raise NotHereError("it needs an Apple GPU")
