"""Pictures as a `generate` message names them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path

from msgspec import UNSET

from ..error_codes import ServingError
from . import schemas


def read_picture(picture: schemas.Picture, frames: Iterator[bytes], folders: list[Path] | None) -> bytes | Path:
    """The bytes of a picture file, or its path. frames: those that follow the message; one is taken if the picture is
    there. folders: as in `confined`. Raises ServingError."""
    if picture.path is not UNSET:
        return confined(picture.path, folders)
    if picture.base64 is UNSET:
        return next(frames)
    try:
        return base64.b64decode(picture.base64, validate=True)
    except (binascii.Error, ValueError):
        raise ServingError("bad_image", "a picture is no base64") from None


def confined(path: str, folders: list[Path] | None) -> Path:
    """The file that a path leads to, links followed. folders: resolved ones; None for any. Raises ServingError if the
    file is in none of them."""
    try:
        resolved = Path(path).resolve()
    except (OSError, RuntimeError, ValueError):
        raise ServingError("bad_image", "the path cannot be followed") from None
    if folders is not None and not any(resolved.is_relative_to(folder) for folder in folders):
        raise ServingError("bad_image", "pictures are not read from there")
    return resolved
