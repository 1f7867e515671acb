"""The pictures in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from .formats import PICTURE_SUFFIXES


def pictures_in(folder: str | Path) -> list[str]:
    """The paths of its files with the suffix of a picture, sorted; not those in folders below, and none that is hidden.

    Raises InputError if there are none, or if the folder cannot be read.
    """
    place = Path(folder).expanduser()
    try:
        with os.scandir(place) as entries:
            names = sorted(entry.name for entry in entries if is_picture(entry.name) and entry.is_file())
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from None
    if not names:
        raise InputError(f"there are no pictures in the folder {folder}")
    return [str(place / name) for name in names]


def is_picture(name: str) -> bool:
    """Whether a file of this name is one of the pictures in a folder: by its suffix, and not hidden."""
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES and not name.startswith(".")  # noqa: PTH122  # fast
