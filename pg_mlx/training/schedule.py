"""The learning rate of each step: a function of the step's number alone, so that a run can go on anywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError

Shape = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class Schedule:
    """From 0 up to `learning_rate` in the first steps, then down to 0 by half a cosine or a line, or not at all.

    steps: of the whole run. warmup: how many steps go up, or, below 1, which share of all steps. Making one raises
    InputError for impossible values.
    """

    learning_rate: float
    steps: int
    shape: Shape = "cosine"
    warmup: float = 0.05

    def __post_init__(self) -> None:
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(f"the learning rate is {self.learning_rate}, but must be above 0")
        if self.steps < 1:
            raise InputError(f"a run of {self.steps} steps is not possible")
        if self.shape not in ("cosine", "linear", "constant"):
            raise InputError(f"the schedule is {self.shape!r}, but must be cosine, linear or constant")
        if not 0 <= self.warmup <= self.steps:
            raise InputError(f"the warm-up is {self.warmup}, but must be from 0 to {self.steps} steps")

    @property
    def warmup_steps(self) -> int:
        """Steps in which the rate goes up."""
        return round(self.warmup * self.steps) if self.warmup < 1 else int(self.warmup)

    def __call__(self, step: int) -> float:
        """The rate of a step; they count from 0. The first step of a warm-up already learns a little."""
        up = self.warmup_steps
        if step < up:
            return self.learning_rate * (step + 1) / (up + 1)
        if self.shape == "constant":
            return self.learning_rate
        done = min(1.0, (step - up) / max(1, self.steps - up))
        return self.learning_rate * (1 - done if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
