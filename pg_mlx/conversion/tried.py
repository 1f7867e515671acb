"""What a conversion tried: size and divergence of each, and a picture of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from ..chart import Series, draw_panels

if TYPE_CHECKING:
    from .by_budget import ChosenBits
    from .candidates import Chosen
    from .quality import Quality

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


def all_tried(bits: ChosenBits | None, choice: Chosen | None, quality: Quality | None, written: int) -> list[Tried]:
    """Everything that a conversion with a choice measured or predicted; nothing for one without. written: bytes."""
    name = "chosen bits" if bits else "these bits"
    found = list(bits.tried) if bits else []
    if choice:
        found += [Tried(f"{name}, {one.method}", written, one.kl_mean, one.kl_error) for one in choice.judgements]
    elif bits and quality:
        found.append(Tried(f"{name}, {bits.target.method}", written, quality.kl_mean, quality.kl_error or 0.0))
    return found


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
