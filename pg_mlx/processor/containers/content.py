"""What of a file makes its pixels: all that Pillow is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


class Damaged(Exception):
    """The bytes are not what their first ones promise. The message is the end of "NAME is damaged: "."""


class Costly(Exception):
    """The picture may be sound, but reading it would take too long. The message is the end of "NAME has "."""


class RawFile(Exception):
    """What a camera's sensor saw, with a thumbnail beside it."""


@dataclass(frozen=True)
class Content:
    """One page or frame of a file, stripped of what is not needed for its pixels."""

    format: str
    """Pillow's name of the only reader that may be tried."""
    data: bytes
    """A file of that format that holds the needed parts only."""
    size: tuple[int, int] | None = None
    """Width and height in pixels as the header has them; None where only the reader can tell."""
    orientation: int = 1
    """EXIF's number from 1 to 8, read from what was left out of data."""
    pages: int = 1
    """How many pages or frames the file has. Where it is 1, the reader may find more."""
    unit: str = "pages"
    frame: int | None = None
    """The frame of data to be read, from 0; None for the one that the reader starts with."""
    white: int | tuple[int, int, int] | None = None
    """A grey level or colour that is transparent, in the levels that the reader yields."""
    inverted: bool = False
    """0 is white."""
    levels: int = 65535
    """The largest value of a picture of more than 8 bits."""
    trusted_alpha: bool = True
    """False where writers often leave alpha 0 everywhere: such a picture is opaque."""
    halves: bool = False
    """The reader can decode it at half its size."""
    make: Callable[[], Image.Image] | None = None
    """Makes the picture without Pillow's reader."""
