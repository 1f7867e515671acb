"""A sheet of examples as one picture: what a model is about to learn, for a person to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..processor import load_image
from ..regions import Region
from ..regions.draw import annotate
from ..regions.fonts import Font, font_for
from ..regions.reader import read_answer
from .example import Example
from .regions import RegionWriter, answer_text, mask_crop

TILE = 384
"""Width and height in pixels of a picture on the sheet."""
_TEXT, _GAP, _LINES = 14, 8, 4


def sheet(
    examples: Sequence[Example],
    count: int = 12,
    writer: RegionWriter | None = None,
    mask_decoder: Callable[[Any], Any] | None = None,
) -> Image.Image:
    """The first examples, RGB, with boxes and masks drawn, and with prompt and answer below each.

    writer: writes answers of masks, so that the sheet shows their tokens. mask_decoder: draws masks that the data gives
    as codes only. Raises InputError for a picture that cannot be read.
    """
    chosen = list(examples[:count])
    written = writer.written(chosen) if writer else chosen
    columns = max(1, min(4, round(len(chosen) ** 0.5)))
    rows = -(-len(chosen) // columns)
    height = TILE + 2 * _LINES * (_TEXT + 4) + _GAP
    canvas = Image.new("RGB", (columns * (TILE + _GAP) + _GAP, max(1, rows) * height + _GAP), "white")
    for number, example in enumerate(written):
        left, top = _GAP + number % columns * (TILE + _GAP), _GAP + number // columns * height
        _tile(canvas, (left, top), example, mask_decoder)
    return canvas


def _tile(
    canvas: Image.Image, place: tuple[int, int], example: Example, mask_decoder: Callable[[Any], Any] | None
) -> None:
    image = load_image(example.image)
    picture = annotate(image, regions_of(example, mask_decoder))
    picture.thumbnail((TILE, TILE))
    left, top = place
    canvas.paste(picture, place)
    draw = ImageDraw.Draw(canvas)
    y = top + TILE + 4
    for text, color in ((example.prefix, "black"), (example.suffix or "(empty answer)", "#0a58ca")):
        text = " ".join(text.split())
        font = font_for(text, _TEXT)
        for line in _wrapped(text, font) if font is not None else ():
            draw.text((left, y), line, fill=color, font=font)
            y += _TEXT + 4


def regions_of(example: Example, mask_decoder: Callable[[Any], Any] | None = None) -> list[Region]:
    """What an example's answer says, as regions, the masks as the data has them."""
    size = example.image_size or load_image(example.image).size
    if example.kind == "text":
        return []
    if not any(one.mask for one in example.objects):
        return read_answer(example.suffix, size, mask_decoder)[0]
    text = answer_text(example.objects, size, [None] * len(example.objects))
    regions, _ = read_answer(text, size)
    drawn = []
    for region, one in zip(regions, example.objects, strict=True):
        decoded = 2 * mask_crop(one.mask, one.box) - 1 if one.mask else None
        drawn.append(replace(region, decoded=None if decoded is None else decoded.astype(np.float32)))
    return drawn


def _wrapped(text: str, font: Font) -> list[str]:
    """At most _LINES lines of a tile's width, cut between letters: answers of tokens have no spaces."""
    lines, rest = list[str](), text[: _LINES * TILE]
    while rest and len(lines) < _LINES:
        count = len(rest)
        while count > 1 and font.getlength(rest[:count]) > TILE:
            count = min(count - 1, round(count * TILE / font.getlength(rest[:count])))
        lines.append(rest[:count])
        rest = rest[count:]
    return [*lines[:-1], f"{lines[-1][:-2]}…"] if rest else lines
