"""What a job is about: folders, lists of paths, JSON lines, tars and parquet files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import InputError
from ..processor.folder import pictures_in
from .entries import Columns, Entry, Listing, Section, entry_of, located, readable
from .parquet import ParquetListing
from .tars import TarListing

SUFFIXES = (".tar", ".parquet", ".jsonl", ".txt")
"""Files that hold or name many pictures."""

_MAX_LINE = 64 << 20
"""Bytes of a line: room for a large picture as a data URI."""


def open_listings(sources: Sequence[str], columns: Columns) -> list[Listing]:
    """The listings of some sources. A folder is its pictures or, if it holds none, its files of SUFFIXES of one kind.

    Raises InputError for a source that does not exist or is of no known kind.
    """
    return [listing for source in sources for listing in _open(source, columns)]


def _open(source: str, columns: Columns) -> Iterator[Listing]:
    place = readable(source)
    if not place.is_dir():
        yield _of_file(place, columns)
        return
    files = sorted(path for path in place.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))
    try:
        pictures = FolderListing(place)
    except InputError:
        if not files:
            raise
    else:
        if not any(path.suffix in (".tar", ".parquet") for path in files):  # notes and captions may lie beside pictures
            yield pictures
            return
        raise InputError(f"{source} holds both pictures and {files[0].name}; name the files or a folder of one kind")
    if len({path.suffix for path in files}) > 1:
        raise InputError(f"{source} holds files of several kinds, as {files[0].name} and {files[-1].name}; name them")
    for path in files:
        yield _of_file(path, columns)


def _of_file(path: Path, columns: Columns) -> Listing:
    match path.suffix:
        case ".tar":
            return TarListing(path)
        case ".parquet":
            return ParquetListing(path, columns)
        case ".jsonl":
            return LinesListing(path, columns)
        case ".txt":
            return LinesListing(path, None)
    kinds = ", ".join(SUFFIXES)
    raise InputError(f"{path} is neither a folder nor a file that holds many pictures ({kinds}, not compressed)")


class FolderListing:
    """The pictures in a folder, by name. The paths are in memory: 0.1 GB for a million."""

    integer_ids = False

    def __init__(self, folder: Path):
        """Raises InputError if there are no pictures."""
        self.name = str(folder)
        self._paths = pictures_in(folder)
        self._above = len(self._paths[0]) - len(Path(self._paths[0]).name)
        self.identity = _digest(path[self._above :].encode(errors="surrogateescape") for path in self._paths)

    def sections(self, size: int) -> list[Section]:
        """Sections that start at the number of a picture."""
        count = len(self._paths)
        return [Section(start, min(size, count - start)) for start in range(0, count, size)]

    def entries(self, section: Section) -> Iterator[Entry]:
        """Their id is the name of the file."""
        for path in self._paths[section.start : section.start + section.count]:
            yield Entry(path[self._above :], path, path)


class LinesListing:
    """A list: a path or address a line, or a JSON object a line. It is read line by line."""

    integer_ids = False

    def __init__(self, path: Path, columns: Columns | None):
        """columns: the keys of JSON objects; None for a list of paths. Raises InputError if it cannot be read."""
        self.name, self._path, self._columns = str(path), path, columns
        self.identity = _digest(line for _, line in self._lines(0))

    def sections(self, size: int) -> list[Section]:
        """Sections that start at a position in bytes."""
        found: list[Section] = []
        for place, _ in self._lines(0):
            if found and found[-1].count < size:
                found[-1] = Section(found[-1].start, found[-1].count + 1)
            else:
                found.append(Section(place, 1))
        return found

    def entries(self, section: Section) -> Iterator[Entry]:
        """The id in a list of paths is the line as it stands there."""
        lines = self._lines(section.start)
        for (place, line), _ in zip(lines, range(section.count), strict=False):
            yield self._plain(line) if self._columns is None else self._object(line, place, self._columns)

    def _plain(self, line: bytes) -> Entry:
        path = line.decode(errors="surrogateescape")
        place = located(path, self._path.parent)
        return Entry(path, place, place)

    def _object(self, line: bytes, place: int, columns: Columns) -> Entry:
        name = f"{self._path.name} at byte {place}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            return Entry(name, name, error=f"the line is not valid JSON: {error}")
        if not isinstance(row, dict):
            return Entry(name, name, error="the line is no JSON object")
        return entry_of(row, columns, self._path.parent, name)

    def _lines(self, start: int) -> Iterator[tuple[int, bytes]]:
        """The lines that are not blank, without their ends, each with the position at which it begins."""
        try:
            with self._path.open("rb") as file:
                if start == 0 and file.read(3) != b"\xef\xbb\xbf":  # a mark with which some programs begin a file
                    file.seek(0)
                if start:
                    file.seek(start)
                yield from _split(file, self.name)
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror}") from None


def _split(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    place = file.tell()
    while line := file.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise InputError(f"{name} has a line of more than {_MAX_LINE >> 20} MiB at byte {place}")
        if stripped := line.strip(b"\r\n").strip(b" \t"):
            yield place, stripped
        place += len(line)


def _digest(parts: Iterable[bytes]) -> str:
    digest, count = hashlib.sha256(), 0
    for part in parts:
        digest.update(part + b"\n")
        count += 1
    return f"{count} {digest.hexdigest()[:32]}"
