"""The curves of a run as one picture: the loss above, the scores below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..chart import Series, draw_panels
from .card import FIGURES


def draw_curve(log: Sequence[dict[str, Any]]) -> Image.Image:
    """RGB. log: the lines of log.jsonl."""
    reports = [line for line in log if line["event"] == "report"]
    evaluations = [line for line in log if line["event"] == "evaluation"]
    losses = [
        Series("training loss", [(line["step"], line["loss"]) for line in reports], dots=False),
        Series("validation loss", [(line["step"], line["loss"]) for line in evaluations if line["loss"] is not None]),
    ]
    scores = [
        Series(words, [(line["step"], line["scores"][name]) for line in evaluations if name in line["scores"]])
        for name, words in FIGURES.items()
    ]
    panels: list[tuple[str, list[Series], float | None]] = [("loss", losses, None)]
    if any(series.points for series in scores):
        panels.append(("scores on validation data", scores, 1.0))
    steps = max((line["step"] for line in [*reports, *evaluations]), default=1)
    return draw_panels(panels, max(1, steps), "steps")
