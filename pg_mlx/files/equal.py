"""Which files are copies of each other."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from .regular import open_regular

_COMPARED = 64 << 20
"""Bytes at the beginning of files that are compared, beside their sizes."""


def first_equals(paths: Iterable[Path]) -> Iterator[Path]:
    """For each file in turn the first one with the same bytes: an earlier one, or itself.

    Files are read only if there are several of one size. One that cannot be read equals no other.
    """
    by_size: dict[int, dict[object, Path]] = {}
    for path in paths:
        size = _size(path)
        same = by_size.setdefault(size, {}) if size is not None else {}
        if not same:
            same[None] = path  # not read yet
            yield path
            continue
        if None in same:
            alone = same.pop(None)
            same[_digest(alone)] = alone
        yield same.setdefault(_digest(path), path)


def _size(path: Path) -> int | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _digest(path: Path) -> object:
    try:
        with open_regular(path) as file:
            return hashlib.sha256(file.read(_COMPARED)).digest()
    except (OSError, InputError):
        return path
