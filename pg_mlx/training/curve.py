"""The curves of a run as one picture: the loss above, the scores below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .card import FIGURES

WIDTH, PANEL = 960, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 34, 46
_GREY, _PALE, _INK = (120, 120, 120), (225, 225, 225), (30, 30, 30)
_COLORS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
_SIZE = 15
_LINES = 5
"""Horizontal lines of a panel, about."""


@dataclass(frozen=True)
class Series:
    """A line of a panel: (step, value) in the order of steps. dots: each point is marked."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = True


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
    canvas = Image.new("RGB", (WIDTH, PANEL * len(panels)), "white")
    for number, (title, series, top) in enumerate(panels):
        _Panel(ImageDraw.Draw(canvas), number * PANEL, steps, top).draw(title, [one for one in series if one.points])
    return canvas


class _Panel:
    """One pair of axes: steps from 0, values from 0."""

    def __init__(self, draw: ImageDraw.ImageDraw, offset: int, steps: int, top: float | None):
        self._draw, self._offset, self._steps, self._top = draw, offset, steps, top
        self._font = ImageFont.load_default(_SIZE)

    def draw(self, title: str, series: Sequence[Series]) -> None:
        values = [value for one in series for _, value in one.points]
        self._highest = self._top or _above(max(values, default=1.0))
        left, top, right, bottom = _LEFT, self._offset + _TOP, WIDTH - _RIGHT, self._offset + PANEL - _BOTTOM
        self._draw.text((left, top - 26), title, fill=_INK, font=self._font)
        for value in _marks(self._highest):
            y = self._y(value)
            self._draw.line((left, y, right, y), fill=_PALE)
            self._draw.text((left - 8, y), f"{value:g}", fill=_GREY, font=self._font, anchor="rm")
        for step in _marks(self._steps):
            x = self._x(step)
            self._draw.line((x, bottom, x, bottom + 5), fill=_GREY)
            self._draw.text((x, bottom + 8), f"{step:g}", fill=_GREY, font=self._font, anchor="mt")
        self._draw.text((right + 24, bottom + 8), "steps", fill=_GREY, font=self._font, anchor="lt")
        self._draw.line((left, top, left, bottom), fill=_GREY)
        self._draw.line((left, bottom, right, bottom), fill=_GREY)
        for number, one in enumerate(series):
            color = _COLORS[number % len(_COLORS)]
            points = [(self._x(step), self._y(min(value, self._highest))) for step, value in one.points]
            self._draw.line(points, fill=color, width=2)
            for x, y in points if one.dots or len(points) == 1 else ():
                self._draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
            y = top + 8 + 24 * number
            self._draw.line((right + 12, y, right + 30, y), fill=color, width=3)
            self._draw.text((right + 36, y), one.name, fill=_INK, font=self._font, anchor="lm")

    def _x(self, step: float) -> float:
        return _LEFT + (WIDTH - _RIGHT - _LEFT) * step / max(1, self._steps)

    def _y(self, value: float) -> float:
        bottom = self._offset + PANEL - _BOTTOM
        return bottom - (PANEL - _BOTTOM - _TOP) * value / self._highest


def _spacing(highest: float) -> float:
    """A round number of which about _LINES make `highest`: 1, 2 or 5 times a power of ten."""
    raw = max(highest, 1e-9) / _LINES
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))


def _above(highest: float) -> float:
    """The next mark at or above the highest value."""
    spacing = _spacing(highest)
    return spacing * max(1, math.ceil(highest / spacing - 1e-9))


def _marks(highest: float) -> list[float]:
    spacing = _spacing(highest)
    return [round(spacing * number, 10) for number in range(math.floor(highest / spacing + 1e-9) + 1)]
