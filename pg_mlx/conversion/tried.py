"""What a conversion tried: size and divergence of each, and a picture of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from ..chart import Series, draw_panels

FILE = "kl_by_bytes.png"
"""The picture, in the folder that is written."""

_ABOVE = 1.5
"""How far above the highest measured divergence the picture reaches. A predicted one may lie higher."""


class Tried(NamedTuple):
    """A way of packing, and how near it stays to the source."""

    name: str
    bytes: int
    """The size of the weights' files."""
    kl: float
    """KL(source || result) in nats."""
    error: float | None
    """Its standard error; None if it is predicted, not measured."""


def draw_tried(tried: Sequence[Tried]) -> Image.Image:
    """RGB: divergence against the size in MB or GB. Measured ones are dots, what is predicted is a line."""
    measured = [one for one in tried if one.error is not None]
    dots = {one.name for one in measured}
    largest = max((one.bytes for one in tried), default=0)
    scale, unit = (1e9, "GB") if largest >= 1e9 else (1e6, "MB")
    names = sorted(dict.fromkeys(one.name for one in tried), key=lambda name: name in dots)  # dots lie over lines
    series = [
        Series(name, [(one.bytes / scale, one.kl) for one in tried if one.name == name], dots=name in dots)
        for name in names
    ]
    top = _ABOVE * max((one.kl for one in measured), default=0.0)
    title = "KL of the result from the source, in nats, against the size of the weights"
    return draw_panels([(title, series, top or None)], largest / scale, unit)
