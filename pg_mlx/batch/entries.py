"""Entry: one picture of a source, and Listing: what every kind of source can do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError

IMAGE_COLUMNS = ("image", "bytes", "path", "image_path", "file_name", "url")
"""Where a picture is looked for if no column is named: the first of these that is there."""
ID_COLUMNS = ("id", "key", "__key__")
PROMPT_COLUMN = "prompt"

_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")


@dataclass(frozen=True)
class Section:
    """Entries of a listing that make one shard."""

    start: int
    """Where they begin, in units that the listing chooses: an entry's number or a position in bytes."""
    count: int
    """How many there are."""


@dataclass(frozen=True)
class Columns:
    """The names of columns in parquet files, and of keys in JSON lines; None for the usual ones."""

    image: str | None = None
    id: str | None = None


@dataclass(frozen=True)
class Entry:
    """One picture of a source."""

    id: str | int
    """What the source calls it; an answer's row has it, too."""
    image: str
    """What a row calls the picture: its path, its address, or its name in the file that holds it."""
    data: Any = None
    """Whatever load_image takes."""
    prompt: str | None = None
    """Its own question, if it has one."""
    error: str | None = None
    """Why there is no picture."""


class Listing(Protocol):
    """The pictures of one folder or file, in an order that never changes. Little of it is in memory at a time."""

    name: str
    """What messages call it."""
    identity: str
    """Another text if the listing holds other pictures, and the same text on another machine, wherever the folder is
    mounted there. It depends on names and sizes, and not on the content of pictures."""
    integer_ids: bool
    """Whether all ids are int. If not, they are str, or some of each."""

    def sections(self, size: int) -> list[Section]:
        """All entries, in sections of at most so many."""

    def entries(self, section: Section) -> Iterator[Entry]:
        """The entries of a section. Raises InputError if the source cannot be read any more."""


def entry_of(row: Mapping[str, Any], columns: Columns, beside: Path, name: str, number: int | None = None) -> Entry:
    """The entry of a row of a table: a dict from JSON or parquet.

    beside: the folder that relative paths begin at. name: what the picture is called if only its bytes are there.
    number: the id if the row has none; None for the picture's name. A row without a picture gives an entry with an
    error.
    """
    value: Any = row.get(column_of(row, columns.image, IMAGE_COLUMNS) or "")
    path: Any = None
    if isinstance(value, Mapping):  # as the library `datasets` stores pictures
        value, path = value.get("bytes") or value.get("path"), value.get("path")
    is_bytes = isinstance(value, (bytes, bytearray, memoryview))
    if is_bytes and path is None:
        path = next((row[key] for key in ("path", "file_name") if isinstance(row.get(key), str)), None)
    image = path if is_bytes else value
    if not isinstance(image, str) or image[:5].lower() == "data:":  # rows do not repeat pictures
        image = name
    own = row.get(column_of(row, columns.id, ID_COLUMNS) or "")
    if not isinstance(own, (str, int)) or isinstance(own, bool):
        own = image if number is None else number
    prompt = row.get(PROMPT_COLUMN)
    if prompt is not None and not isinstance(prompt, str):
        return Entry(own, image, error="its prompt is no text")
    if is_bytes:
        return Entry(own, image, bytes(value), prompt)
    if not isinstance(value, str) or not value:
        return Entry(own, image, prompt=prompt, error="the row has no picture")
    place = located(value, beside)
    return Entry(own, image if image == name else place, place, prompt)


def column_of(row: Mapping[str, Any], named: str | None, usual: tuple[str, ...]) -> str | None:
    """The column that was named, or the first of the usual ones that this row has; None if there is none."""
    return named or next((name for name in usual if name in row), None)


def located(path: str, beside: Path) -> str:
    """A path of a list as it is opened: a relative one begins at `beside`, the list's folder. Addresses stay."""
    if _ADDRESS.match(path) or path.startswith(("/", "~")):
        return path
    return os.path.join(beside, path)  # noqa: PTH118  # a Path would change the spelling


def readable(path: str) -> Path:
    """The path of a source. Raises InputError if it cannot be found."""
    try:
        place = Path(path).expanduser()
        place.stat()
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return place
