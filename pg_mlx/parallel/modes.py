"""The ways to divide a model, by name."""

from __future__ import annotations

from .decoder import Mode
from .pipeline import Pipeline
from .plan import Part


def mode_of(part: Part) -> Mode:
    """How the ranks share a pass, when they hold parts like this one."""
    return Pipeline()
