"""The pictures that a command was given: files, URLs, stdin and folders, each once for every prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from PIL import Image

_NO_PATH = (OSError, RuntimeError, ValueError)
"""Raised for a name that is too long, begins with ~ and no user, or has a zero byte."""

_NAME_BYTES = 120
"""File systems allow 255; this leaves room for number, label and suffix."""


@dataclass(frozen=True)
class Item:
    """One picture with one prompt."""

    source: str
    """Path, URL or "-", as load_image takes it."""
    name: str
    """Its file name without suffix, made different from the name of every other item: for files about it."""
    prompt: str = ""
    more: tuple[str, ...] = ()
    """Further pictures that the same question is about."""
    image: Image.Image | None = None
    """The picture itself, if it has been read and is needed again."""

    @property
    def path(self) -> Path | None:
        """Its path, if it is a file."""
        try:
            path = Path(self.source).expanduser()
            return path if self.source != "-" and path.is_file() else None
        except _NO_PATH:
            return None

    def load(self) -> Image.Image:
        """The picture in RGB, the right way up: `image`, or else read now. Raises InputError."""
        from ..processor.images import load_image

        return self.image or load_image(self.source)


def expand(
    images: Iterable[str] | None, prompts: Sequence[str] = ("",), together: bool = False, page: int | str | None = None
) -> list[Item]:
    """The pictures in order, those of a folder sorted by name, each with every prompt. together: one item for each
    prompt, about all pictures. page: which page or frame of each, or "all": one item for each page. Raises InputError
    if there are none."""
    if not images:
        raise InputError("no picture was given: --image FILE, FOLDER, URL or - (--help explains)")
    from ..processor.folder import pictures_in

    sources = [source for image in images for source in (pictures_in(image) if is_folder(image) else [image])]
    if sources.count("-") > 1:
        raise InputError("stdin holds one picture, but --image - was given more than once")
    if page is not None:
        sources = [named for source in sources for named in _with_page(source, page)]
    names: dict[str, int] = {}
    if together:
        first, *more = sources
        return [Item(first, _unique(stem(first), names), prompt, tuple(more)) for prompt in prompts]
    return [Item(source, _unique(stem(source), names), prompt) for source in sources for prompt in prompts]


def is_folder(image: str) -> bool:
    """Whether this argument is the path of a folder."""
    try:
        return image != "-" and Path(image).expanduser().is_dir()
    except _NO_PATH:
        return False


def _with_page(source: str, page: int | str) -> list[str]:
    """A source with the page that is wanted behind its name; every page for "all". Raises InputError for stdin."""
    if source == "-":
        raise InputError("--page is about files and addresses; what stdin holds is read at its first page")
    if page != "all":
        return [f"{source}#page={page}"]
    from ..processor.images import count_pages

    try:
        count = count_pages(source)
    except InputError:
        count = 1  # said when it is its turn, so that the other pictures are answered
    return [source] if count == 1 else [f"{source}#page={number}" for number in range(1, count + 1)]


def stem(source: str) -> str:
    """The name without suffix of a path or URL, with nothing in it that a file name cannot hold."""
    if source == "-":
        return "stdin"
    last = source.partition("?")[0].partition("#")[0].rpartition("/")[2] if "://" in source else Path(source).name
    stem = re.sub(r"[^\w.-]+", "_", Path(last).stem).strip(".")
    return stem.encode()[:_NAME_BYTES].decode(errors="ignore") or "picture"


def _unique(name: str, taken: dict[str, int]) -> str:
    """The name, or with a number behind it; file systems may not tell upper case from lower."""
    candidate, number = name, 1
    while candidate.lower() in taken:
        number += 1
        candidate = f"{name}-{number}"
    taken[candidate.lower()] = number
    return candidate
