"""Pictures changed at random, with their boxes and masks moved along.

All is a pure function of the example and (seed, step, row). Only whole pixels are moved, so a mask stays exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from ..errors import InputError
from ..processor import load_image
from .example import Example, LabelledObject
from .masks import Box, Mask, bitmap_box
from .regions import SEPARATOR, answer_text

NAMES = ("flip", "crop", "color", "order")
"""Mirrored from left to right half of the time; a part of the picture, or the picture smaller on grey; brightness,
contrast and saturation; records of the answer in another order."""

ZOOM_OUT = 1.5
"""The canvas around a picture is up to so many times as long. As big_vision's zic_mild."""
AREA, ASPECT, TRIES = (0.1, 1.0), (3 / 4, 4 / 3), 20
"""A crop's share of the canvas, its width by its height, and how often one is drawn until it holds a whole object."""
KEPT = 0.3
"""An object of which less is left in a crop is dropped."""
COLOR = 0.2
"""Brightness, contrast and saturation change by up to so much."""
_GREY = 128

_SIDES = re.compile(
    r"\b(left\w*|right\w*|(?:counter|anti)?clockwise|east\w*|west\w*|links|rechts|gauche|droite?|izquierd[ao]|derech[ao]"
    r"|sinistr[ao]|destr[ao])\b",
    re.IGNORECASE,
)
_READING = re.compile(
    r"\b(ocr|text|read(?:s|ing)?|written|writing|words?|letters?|digits?|numbers?|spell\w*|says?|title|plate)\b",
    re.IGNORECASE,
)


def check_augment(names: Sequence[str], examples: Sequence[Example]) -> None:
    """Raises InputError, one line, for an augmentation that there is not, or that would make an answer wrong."""
    for name in names:
        if name not in NAMES:
            raise InputError(f"there is no augmentation {name!r}, only {', '.join(NAMES)}")
    for example in examples:
        if "flip" in names:
            _check_flip(example)
        if "crop" in names and example.kind == "text":
            raise InputError(f"{example.where}: crop could cut away what the answer {example.suffix[:40]!r} speaks of")
        if {"flip", "crop"} & set(names):
            _check_movable(example)


def _check_flip(example: Example) -> None:
    for text in (example.prefix, example.suffix):
        if found := _SIDES.search(text):
            raise InputError(f"{example.where}: flip would make {found[0]!r} in {text[:60]!r} wrong")
    if found := _READING.search(example.prefix):
        raise InputError(f"{example.where}: flip would mirror what {example.prefix[:60]!r} reads ({found[0]!r})")


def _check_movable(example: Example) -> None:
    if example.kind == "text" and "<loc" in example.prefix + example.suffix:
        raise InputError(f"{example.where}: flip and crop cannot move the <loc> tokens of this row")
    if example.kind == "segment" and any(one.mask is None for one in example.objects):
        raise InputError(
            f"{example.where}: flip and crop cannot move masks in <seg> tokens; give polygons, as COCO has"
        )
    if example.kind != "text" and "<loc" in example.prefix:
        raise InputError(f"{example.where}: flip and crop cannot move the <loc> tokens of this prompt")


def augment(example: Example, names: Sequence[str], seed: int, step: int, row: int) -> Example:
    """The example as it is learnt at this row of this step. Its picture stays as it is named, unless it was changed.

    The answer of "segment" objects with masks is left empty where they moved; RegionWriter writes it. Raises InputError
    for a picture that cannot be read any more.
    """
    rng = np.random.default_rng((seed, step, row))
    flips = bool(rng.random() < 0.5) and "flip" in names  # drawn always, so that names do not shift each other
    if "order" in names:
        example = _shuffled(example, rng)
    if not flips and "crop" not in names and "color" not in names:
        return example
    image = load_image(example.image)
    objects = _scaled(example.objects, example.image_size or image.size, image.size)
    if flips:
        image, objects = flipped(image, objects)
    if "crop" in names:
        image, objects = cropped(image, objects, random_window(image.size, objects, rng))
    if "color" in names:
        image = _colored(image, rng)
    if not flips and "crop" not in names:
        return replace(example, image=image)
    masked = example.kind == "segment" and any(one.mask for one in objects)
    suffix = "" if masked else answer_text(objects, image.size, [None] * len(objects))
    suffix = example.suffix if example.kind == "text" else suffix
    return replace(example, image=image, objects=objects, suffix=suffix, image_size=image.size)


def _shuffled(example: Example, rng: np.random.Generator) -> Example:
    """The same records in another order."""
    order = rng.permutation(len(example.objects)).tolist()
    objects = tuple(example.objects[index] for index in order)
    records = example.suffix.split(SEPARATOR)
    if len(records) == len(order):
        return replace(example, objects=objects, suffix=SEPARATOR.join(records[index] for index in order))
    return replace(example, objects=objects) if not example.suffix else example


def _scaled(
    objects: tuple[LabelledObject, ...], labelled: tuple[int, int], size: tuple[int, int]
) -> tuple[LabelledObject, ...]:
    """Objects in the pixels of a picture that was read smaller than it is, as very large JPEGs are."""
    if labelled == size:
        return objects
    x, y = size[0] / labelled[0], size[1] / labelled[1]
    scaled = []
    for one in objects:
        left, top, right, bottom = one.box
        mask = one.mask
        if mask is not None:
            image = Image.fromarray(mask.bitmap()).resize(size, Image.Resampling.NEAREST)
            mask = Mask.from_bitmap(np.asarray(image))
        scaled.append(replace(one, box=(left * x, top * y, right * x, bottom * y), mask=mask))
    return tuple(scaled)


def flipped(image: Image.Image, objects: tuple[LabelledObject, ...]) -> tuple[Image.Image, tuple[LabelledObject, ...]]:
    """Picture and objects mirrored from left to right."""
    width = image.width
    moved = []
    for one in objects:
        left, top, right, bottom = one.box
        mask = one.mask and Mask.from_bitmap(one.mask.bitmap()[:, ::-1])
        moved.append(replace(one, box=(width - right, top, width - left, bottom), mask=mask))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), tuple(moved)


Window = tuple[int, int, int, int]
"""left, top, right, bottom in whole pixels of the picture, beyond whose edges it may reach."""


def random_window(size: tuple[int, int], objects: Sequence[LabelledObject], rng: np.random.Generator) -> Window:
    """A part of a canvas around the picture that holds at least one object as a whole; all of the canvas if none does.

    size: width and height of the picture.
    """
    factor = rng.uniform(1, ZOOM_OUT)
    width, height = (round(side * factor) for side in size)
    x, y = int(rng.integers(width - size[0] + 1)), int(rng.integers(height - size[1] + 1))  # of the picture in it
    for _ in range(TRIES):
        area = rng.uniform(*AREA) * width * height
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (1 <= w <= width and 1 <= h <= height):
            continue
        left, top = int(rng.integers(width - w + 1)) - x, int(rng.integers(height - h + 1)) - y
        window = left, top, left + w, top + h
        if any(_holds(window, one.box) for one in objects) or (not objects and _meets(window, size)):
            return window
    return -x, -y, width - x, height - y


def _holds(window: Window, box: Box) -> bool:
    return window[0] <= box[0] and window[1] <= box[1] and window[2] >= box[2] and window[3] >= box[3]


def _meets(window: Window, size: tuple[int, int]) -> bool:
    """Whether some of the picture is in it."""
    return window[0] < size[0] and window[1] < size[1] and window[2] > 0 and window[3] > 0


def cropped(
    image: Image.Image, objects: tuple[LabelledObject, ...], window: Window
) -> tuple[Image.Image, tuple[LabelledObject, ...]]:
    """What is in the window; grey beside the picture. Objects are cut at its edge, or dropped if little is left."""
    pixels = Image.fromarray(_part(np.asarray(image), window, _GREY))
    moved = (_in_window(one, window) for one in objects)
    return pixels, tuple(one for one in moved if one is not None)


def _part(array: np.ndarray, window: Window, fill: Any) -> np.ndarray:
    """The window [h, w, ...] of an array [H, W, ...], with `fill` beyond its edges."""
    left, top, right, bottom = window
    height, width = array.shape[:2]
    part = np.full((bottom - top, right - left, *array.shape[2:]), fill, array.dtype)
    rows, columns = slice(max(0, top), min(height, bottom)), slice(max(0, left), min(width, right))
    if rows.start < rows.stop and columns.start < columns.stop:
        part[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = array[rows, columns]
    return part


def _in_window(one: LabelledObject, window: Window) -> LabelledObject | None:
    left, top, right, bottom = window
    x0, y0, x1, y1 = one.box
    box: Box = (max(x0, left) - left, max(y0, top) - top, min(x1, right) - left, min(y1, bottom) - top)
    if box[2] <= box[0] or box[3] <= box[1]:
        return None
    share = (box[2] - box[0]) * (box[3] - box[1]) / ((x1 - x0) * (y1 - y0))
    if one.mask is None:
        return replace(one, box=box) if share >= KEPT else None
    whole = one.mask.bitmap()
    bitmap = _part(whole, window, False)
    around = bitmap_box(bitmap)
    if around is None or bitmap.sum() < KEPT * whole.sum():
        return None
    return replace(one, box=box if _holds(window, one.box) else around, mask=Mask.from_bitmap(bitmap))


def _colored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(1 - COLOR, 1 + COLOR))
    return image
