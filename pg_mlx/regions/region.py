"""One object that the model found, and three forms of its place: tokens, a box, a mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    import numpy as np

LAST_LOCATION = 1023
"""<loc0000> is one edge of the picture and <loc1023> the other: big_vision encodes round(coordinate * 1023) and its
evaluators divide by 1023. (Others divide by 1024, and so never reach the far edge.)"""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


@dataclass(frozen=True)
class Region:
    """A box in a picture, perhaps with a mask."""

    label: str
    """As the model wrote it, without space around it; empty if there is none."""
    locations: tuple[int, int, int, int]
    """The four <loc> numbers in the model's order, y0 x0 y1 x1, with y0 < y1 and x0 < x1."""
    image_size: tuple[int, int]
    """Width and height in pixels of the picture, the right way up."""
    codes: tuple[int, ...] | None = None
    """The 16 <seg> numbers, row by row of a 4 x 4 grid, or None in a record without a mask."""
    span: tuple[int, int] = (0, 0)
    """The characters of the text that are the record, from and to (exclusive), without separators."""
    score: float | None = None
    """exp of the mean log-probability of the record's tokens, in 0..1, or None if it was not asked for."""
    decoded: np.ndarray | None = field(default=None, compare=False, repr=False)
    """float32 [64, 64], the mask in the box as MaskDecoder made it from the codes, nominally -1..1."""

    @property
    def box_normalized(self) -> Box:
        """In 0..1 of the picture's width and height."""
        y0, x0, y1, x1 = (location / LAST_LOCATION for location in self.locations)
        return x0, y0, x1, y1

    @property
    def box(self) -> Box:
        """In pixels of the picture, not rounded."""
        width, height = self.image_size
        x0, y0, x1, y1 = self.box_normalized
        return x0 * width, y0 * height, x1 * width, y1 * height

    @property
    def box_pixels(self) -> tuple[int, int, int, int]:
        """The whole pixels that the mask covers: x0, y0, x1, y1; x1 and y1 are one past the last. As in big_vision's
        evaluator fractions are cut off, so a box of less than a pixel can be empty here."""
        x0, y0, x1, y1 = map(int, self.box)
        return x0, y0, x1, y1

    @property
    def mask(self) -> np.ndarray | None:
        """bool [H, W] over the whole picture; None without codes or without a decoder for them.

        It is computed each time it is read, since many large masks would not fit in memory.
        """
        if self.decoded is None:
            return None
        from .paste import paste

        return paste(self.decoded, self.box_pixels, self.image_size)

    @property
    def soft_mask(self) -> np.ndarray | None:
        """float32 [H, W] in 0..1, about 0.5 at the edge of `mask`; otherwise as `mask`."""
        if self.decoded is None:
            return None
        from .paste import paste_soft

        return paste_soft(self.decoded, self.box_pixels, self.image_size)


def format_region(box: Sequence[float], image_size: tuple[int, int]) -> str:
    """A box as the four <loc> tokens of a prompt: y0 x0 y1 x1, as the model was trained on them.

    box: x0, y0, x1, y1 in pixels of the upright picture; what lies outside of it is moved to its edge. image_size: its
    width and height. The tokens are the nearest, so `parse_regions` gives the box within half of 1/1023 of the picture.
    Raises InputError for a box that is none, or whose corners are in the wrong order.
    """
    try:
        x0, y0, x1, y1 = map(float, box)
        width, height = map(index, image_size)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{box!r} in {image_size!r} is no box x0, y0, x1, y1 in a width and height") from None
    if min(width, height) < 1:
        raise InputError(f"image_size is {image_size!r}; it must be the picture's width and height in pixels")
    if not (-math.inf < x0 <= x1 < math.inf and -math.inf < y0 <= y1 < math.inf):
        raise InputError(
            f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} must be numbers x0, y0, x1, y1 with x0 <= x1, y0 <= y1"
        )
    places = (y0 / height, x0 / width, y1 / height, x1 / width)
    return "".join(f"<loc{round(min(max(place, 0.0), 1.0) * LAST_LOCATION):04}>" for place in places)


@dataclass(frozen=True)
class Malformed:
    """Text that begins like a record but is not one, and why. It gives no region."""

    text: str
    reason: str
    span: tuple[int, int]
