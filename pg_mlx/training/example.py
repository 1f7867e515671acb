"""Example: one row of training data, a picture with a question and its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .masks import Box, Mask

KINDS = ("text", "detect", "segment")
"""How the answer of an example is made and scored."""


@dataclass(frozen=True)
class LabelledObject:
    """An object in a picture."""

    label: str
    box: Box
    """left, top, right, bottom in pixels of the upright picture."""
    mask: Mask | None = None
    """A mask of the whole picture, or None where only the box is known."""


@dataclass(frozen=True)
class Example:
    """A picture, a prompt and the answer that is learnt."""

    image: Any
    """What pg_mlx.processor reads; formats give a path as text."""
    prefix: str
    """The prompt, without <image>, <bos> and newline."""
    suffix: str
    """The answer, without <eos>. "" is an answer too. That of "segment" objects with masks is written by
    `regions.RegionWriter`, once there is an encoder."""
    objects: tuple[LabelledObject, ...] = ()
    """What the answer says, where it says boxes. Augmentation moves them and writes the answer anew."""
    kind: str = "text"
    """One of KINDS."""
    image_size: tuple[int, int] | None = None
    """Width and height in pixels, turned as EXIF says. The formats fill it in."""
    where: str = ""
    """The file and its line or record, for messages."""
