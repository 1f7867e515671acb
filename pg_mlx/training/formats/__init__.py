"""Doors for training data: each format is a table entry, and `find` tells which one a file or folder has."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ..faults import Faults
from .lines import read_json_text
from .pictures import Pictures
from .rows import ROWS
from .source import DataOptions, Format, LabelledPicture, Reading, Source

__all__ = ["FORMATS", "DataOptions", "Format", "LabelledPicture", "Pictures", "Reading", "Source", "find", "read"]

FORMATS = (ROWS,)


def find(path: Path) -> tuple[Format, Source]:
    """The format of a file, or of a folder with one such file or with pictures. Raises InputError if it has none."""
    content = read_json_text(path) if path.suffix.lower() == ".json" else None
    source = Source(path, content)
    for door in FORMATS:
        if door.fits(source):
            return door, source
    raise InputError(f"{path} is in no format that is read: " + ", ".join(door.name for door in FORMATS))


def read(path: Path, options: DataOptions, pictures: Pictures, faults: Faults) -> Reading:
    """All that a source holds. Faults are collected; raises InputError only for a source that cannot be read at all."""
    door, source = find(path)
    return door.read(source, options, pictures, faults)
