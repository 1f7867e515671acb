"""What a run reports: one event after the other, each also a line of log.jsonl."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .scores import Scores


def figures(scores: Scores) -> dict[str, float]:
    """The figures of scores that are known, 0..1, without those of single classes and kinds."""
    names = ("exact", "map", "map50", "recall50", "precision50", "mask_iou")
    return {name: value for name in names if (value := getattr(scores, name)) is not None}


@dataclass(frozen=True)
class Stepped:
    """A step is done. It is not logged by itself."""

    step: int
    """How many steps are done."""
    loss: float


@dataclass(frozen=True)
class TrainReport:
    """What the steps since the last report were like."""

    step: int
    loss: float
    """The mean over the tokens (or rows) of these steps."""
    learning_rate: float
    gradient_norm: float
    """The norm at the last step, before clipping."""
    steps_per_second: float
    tokens_per_second: float
    """Tokens that are learnt, of all processes."""
    trained_tokens: int
    """Since the beginning of the run."""
    peak_memory_bytes: int
    """The most bytes that MLX has held since the process started."""

    def callback_info(self) -> dict[str, float]:
        """As mlx-lm's callbacks get it."""
        return {
            "iteration": self.step,
            "train_loss": self.loss,
            "learning_rate": self.learning_rate,
            "iterations_per_second": self.steps_per_second,
            "tokens_per_second": self.tokens_per_second,
            "trained_tokens": self.trained_tokens,
            "peak_memory": self.peak_memory_bytes / 1e9,
        }


@dataclass(frozen=True)
class Evaluated:
    """Validation data was asked."""

    step: int
    loss: float | None
    scores: Scores
    best: bool
    """Whether it is the best so far, and so in best/."""
    seconds: float

    def callback_info(self) -> dict[str, float]:
        """As mlx-lm's callbacks get it, with the scores beside it."""
        info = {"iteration": self.step, "val_time": self.seconds}
        if self.loss is not None:
            info["val_loss"] = self.loss
        return info | {f"val_{name}": value for name, value in figures(self.scores).items()}


@dataclass(frozen=True)
class Saved:
    """The run folder holds all up to this step."""

    step: int


@dataclass(frozen=True)
class Ended:
    """The run is over. reason: "done", "no better" (early stopping) or "interrupted"."""

    step: int
    reason: str
    best_step: int | None
    seconds: float


Event = Stepped | TrainReport | Evaluated | Saved | Ended
NAMES = {TrainReport: "report", Evaluated: "evaluation", Saved: "saved", Ended: "ended"}


def log_line(event: Event) -> dict[str, Any] | None:
    """An event as a line of log.jsonl; None if it has none."""
    name = NAMES.get(type(event))
    if name is None:
        return None
    line = {"event": name, **asdict(event)}
    if isinstance(event, Evaluated):
        line["scores"] = event.scores.to_json()
    return line
