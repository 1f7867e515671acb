"""Doors for training data: each format is a table entry, and `find` tells which one a file or folder has."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ..faults import Faults
from . import coco, rows, texts, via
from .lines import read_json_text, visible
from .pictures import Pictures
from .source import Contents, DataOptions, DataSource, Format, LabelledPicture

__all__ = ["FORMATS", "Contents", "DataOptions", "DataSource", "Format", "LabelledPicture", "Pictures", "find", "read"]

FORMATS = (rows.ROWS, coco.CAPTIONS, coco.INSTANCES, via.JSON, via.CSV, texts.TEXTS)
ANNOTATIONS = ("annotations.jsonl", "_annotations.coco.json", "via_region_data.json")
"""Names of annotations in a folder that are known. Else it may hold one such file under any name."""
_FILES = (".jsonl", ".ndjson", ".json", ".csv")


def find(path: Path) -> tuple[Format, DataSource]:
    """The format of a file, or of a folder with one such file or with pictures. Raises InputError if it has none."""
    file = annotations_of(path) or path if path.is_dir() else path
    if not file.exists():
        raise InputError(f"there is no {file}")
    content = read_json_text(file) if file.suffix.lower() == ".json" else None
    source = DataSource(file, content)
    for door in FORMATS:
        if door.fits(source):
            return door, source
    raise InputError(f"{path} is in no format that is read: " + ", ".join(door.name for door in FORMATS))


def annotations_of(folder: Path) -> Path | None:
    """The file of annotations in a folder; None if there is none. Raises InputError if any of several may be meant."""
    for name in ANNOTATIONS:
        if (folder / name).is_file():
            return folder / name
    files = [path for path in visible(folder) if path.suffix.lower() in _FILES and path.is_file()]
    if len(files) > 1:
        raise InputError(f"{folder} holds {', '.join(path.name for path in files[:5])}: name the file that is meant")
    return files[0] if files else None


def read(path: Path, options: DataOptions, pictures: Pictures, faults: Faults) -> Contents:
    """All that a source holds. Faults are collected; raises InputError only for a source that cannot be read at all."""
    door, source = find(path)
    return door.read(source, options, pictures, faults)
