"""The ways to divide a model."""

from __future__ import annotations

from .decoder import Mode
from .pipeline import Pipeline
from .plan import RankPart
from .tensor import Tensor


def mode_of(part: RankPart) -> Mode:
    """How the ranks share a pass, when they hold parts like this one."""
    return Tensor(part.vocabulary) if part.vocabulary else Pipeline()
