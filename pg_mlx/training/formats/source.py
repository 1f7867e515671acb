"""What the doors of formats share: options, what they are given, and what they return."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...processor import plain_prompt
from ..example import Example, LabelledObject
from ..faults import Faults
from .pictures import Pictures

FORBIDDEN = ("<eos>", "<bos>", "<pad>", "<unk>", "<image>")
"""Tokens that the program places itself. In a text they would be letters, or end an answer early."""


@dataclass(frozen=True)
class DataOptions:
    """How data is read."""

    prefix: str | None = None
    """The prompt of rows that have none, as in captions and texts beside pictures."""
    task: str = "detect"
    """"detect" or "segment": what is made of labelled objects."""
    images: Path | None = None
    """The folder of the pictures, where they are not beside the file that names them."""
    per_class: bool = False
    """A row for each class in a picture, and one for a class that is not in it, instead of one row for all classes."""
    classes: tuple[str, ...] = ()
    """The classes of labelled objects, in the order of the prompt. Others are left out. Empty: those of the data."""
    label: str = ""
    """The label of objects that carry none, as VIA files with one class have them."""
    lowercase: bool = False
    """Prompts, answers and labels in lower case, as Google's notebooks have them."""

    def __post_init__(self) -> None:
        if self.task not in ("detect", "segment"):
            raise InputError(f"the task is {self.task!r}, but labelled objects make 'detect' or 'segment'")

    def text(self, text: str) -> str:
        """A text as it is learnt."""
        return text.lower() if self.lowercase else text


@dataclass(frozen=True)
class DataSource:
    """Where data is: one file, or a folder of pictures with texts."""

    path: Path
    content: Any = None
    """The value of a JSON file, which is read once."""

    def folder(self, options: DataOptions) -> Path:
        """Where the pictures are."""
        return options.images or (self.path if self.path.is_dir() else self.path.parent)


@dataclass(frozen=True)
class LabelledPicture:
    """A picture whose objects are labelled. Examples are made of it when the classes of all splits are known."""

    image: str
    size: tuple[int, int]
    objects: tuple[LabelledObject, ...]
    where: str


@dataclass
class Contents:
    """What a source holds."""

    examples: list[Example] = field(default_factory=list)
    pictures: list[LabelledPicture] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    """The classes of the pictures' objects, in the order of the source."""


@dataclass(frozen=True)
class Format:
    """A door: which sources it takes, and how it reads them."""

    name: str
    fits: Callable[[DataSource], bool]
    """Called with a source of known content. Looks at no more than its beginning."""
    read: Callable[[DataSource, DataOptions, Pictures, Faults], Contents]
    """Adds what is wrong to the faults, with its place, and goes on."""


def checked_prefix(text: Any, options: DataOptions) -> str:
    """A prompt as Example has it. Raises InputError if it is no text, or holds a token that is not for prompts."""
    text = _checked(text, "prefix")
    return options.text(_without_tokens(plain_prompt(text).removesuffix("\n"), "prefix"))


def checked_suffix(text: Any, options: DataOptions) -> str:
    """An answer as Example has it. Raises InputError if it is no text, or holds a token that is not for answers."""
    return options.text(_without_tokens(_checked(text, "suffix").replace("\r\n", "\n"), "suffix"))


def _checked(text: Any, key: str) -> str:
    if not isinstance(text, str):
        raise InputError(f"{key} is {str(text)[:40]!r} ({type(text).__name__}), but must be text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{key} is not valid Unicode") from None
    return text


def _without_tokens(text: str, key: str) -> str:
    for token in FORBIDDEN:
        if token in text:
            raise InputError(f"{key} holds {token}, which the program places itself; remove it")
    return text
