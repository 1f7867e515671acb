"""Lines over two axes, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, PANEL = 960, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 190, 34, 46
_GREY, _PALE, _INK = (120, 120, 120), (225, 225, 225), (30, 30, 30)
_COLORS = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))
_SIZE = 15
_LINES = 5
"""Horizontal lines of a panel, about."""


@dataclass(frozen=True)
class Series:
    """A line of a panel: (x, y) with rising x. dots: each point is marked."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = True


def draw_panels(panels: Sequence[tuple[str, Sequence[Series], float | None]], right: float, unit: str) -> Image.Image:
    """RGB: panels one above the other, each with a title, its lines, and where its y axis ends; None for above the
    highest value. Both axes begin at 0. right: where the x axis ends. unit: what it counts."""
    canvas = Image.new("RGB", (WIDTH, PANEL * len(panels)), "white")
    for number, (title, series, top) in enumerate(panels):
        panel = _Panel(ImageDraw.Draw(canvas), number * PANEL, right, unit, top)
        panel.draw(title, [one for one in series if one.points])
    return canvas


class _Panel:
    """One pair of axes, both from 0."""

    def __init__(self, draw: ImageDraw.ImageDraw, offset: int, end: float, unit: str, top: float | None):
        self._draw, self._offset, self._end, self._unit, self._top = draw, offset, end, unit, top
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
        for mark in _marks(self._end):
            x = self._x(mark)
            self._draw.line((x, bottom, x, bottom + 5), fill=_GREY)
            self._draw.text((x, bottom + 8), f"{mark:g}", fill=_GREY, font=self._font, anchor="mt")
        self._draw.text((right + 24, bottom + 8), self._unit, fill=_GREY, font=self._font, anchor="lt")
        self._draw.line((left, top, left, bottom), fill=_GREY)
        self._draw.line((left, bottom, right, bottom), fill=_GREY)
        for number, one in enumerate(series):
            color = _COLORS[number % len(_COLORS)]
            points = [(self._x(place), self._y(min(value, self._highest))) for place, value in one.points]
            self._draw.line(points, fill=color, width=2)
            for x, y in points if one.dots or len(points) == 1 else ():
                self._draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
            y = top + 8 + 24 * number
            self._draw.line((right + 12, y, right + 30, y), fill=color, width=3)
            self._draw.text((right + 36, y), one.name, fill=_INK, font=self._font, anchor="lm")

    def _x(self, place: float) -> float:
        return _LEFT + (WIDTH - _RIGHT - _LEFT) * place / (self._end or 1)

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
