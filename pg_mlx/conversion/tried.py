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
    """Of the weights' files."""
    kl: float
    """KL(source || result) in nats."""
    error: float | None
    """Its standard error; None if it is predicted, not measured."""


def draw_tried(tried: Sequence[Tried]) -> Image.Image:
    """RGB: divergence against megabytes. Measured ones are dots, what is predicted is a line."""
    measured = [one for one in tried if one.error is not None]
    names = dict.fromkeys(one.name for one in tried)
    series = [
        Series(
            name,
            [(one.bytes / 1e6, one.kl) for one in tried if one.name == name],
            dots=any(one.name == name for one in measured),
        )
        for name in names
    ]
    top = _ABOVE * max((one.kl for one in measured), default=0.0)
    right = max((one.bytes for one in tried), default=0) / 1e6
    return draw_panels(
        [("KL(source ‖ result), nats, against the size of the weights", series, top or None)], right, "MB"
    )
