"""Labelled objects to the text of an answer: `<loc>` tokens of boxes, `<seg>` tokens of masks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..regions import format_region
from ..regions.paste import crop
from ..regions.region import LAST_LOCATION
from .example import Example, LabelledObject
from .masks import Box, Mask

SEPARATOR = " ; "
Codes = tuple[int, ...]
"""16 numbers in 0..127."""
AT_ONCE = 64
"""Masks of one pass through the encoder, which bounds its memory."""
CACHED = 1 << 16
"""Masks whose codes are kept: 16 numbers each."""


def location_text(box: Box, size: tuple[int, int]) -> str:
    """The four `<loc>` tokens of a box in a picture of this width and height.

    A box that is thinner than the tokens can say gets one step of width, since an empty box is no record.
    """
    text = format_region(box, size)
    y0, x0, y1, x1 = (text[at : at + 9] for at in range(0, 36, 9))
    if x0 != x1 and y0 != y1:
        return text
    return "".join(f"<loc{number:04}>" for number in _grown(*(int(token[4:8]) for token in (y0, x0, y1, x1))))


def _grown(y0: int, x0: int, y1: int, x1: int) -> tuple[int, int, int, int]:
    if y0 == y1:
        y0, y1 = (y0 - 1, y1) if y1 == LAST_LOCATION else (y0, y1 + 1)
    if x0 == x1:
        x0, x1 = (x0 - 1, x1) if x1 == LAST_LOCATION else (x0, x1 + 1)
    return y0, x0, y1, x1


def answer_text(objects: Sequence[LabelledObject], size: tuple[int, int], codes: Sequence[Codes | None]) -> str:
    """The records of objects in their order, joined by " ; ". codes: of each object's mask, or None for a box alone."""
    records = []
    for one, mask in zip(objects, codes, strict=True):
        masks = "".join(f"<seg{code:03}>" for code in mask or ())
        records.append(f"{location_text(one.box, size)}{masks} {one.label}".rstrip())
    return SEPARATOR.join(records)


def in_order(
    objects: Iterable[LabelledObject], classes: Sequence[str], size: tuple[int, int]
) -> tuple[LabelledObject, ...]:
    """Objects as answers list them: by class as in the prompt, then from top to bottom, then from left to right.

    Places are compared as `<loc>` tokens, so equal tokens cannot hide an order. Classes that are not listed go last.
    """
    rank = {label: number for number, label in enumerate(classes)}
    return tuple(sorted(objects, key=lambda one: (rank.get(one.label, len(rank)), location_text(one.box, size))))


class RegionWriter:
    """Writes the answers of examples whose objects have masks. Codes of masks that were seen are kept."""

    def __init__(self, encoder: Callable[[Any], Any] | None):
        """encoder: a MaskEncoder, or None for data without masks."""
        self._encoder = encoder
        self._codes: OrderedDict[tuple[Mask, Box], Codes] = OrderedDict()

    def written(self, examples: Sequence[Example]) -> list[Example]:
        """The examples, with the answers of their objects where these have masks. Masks are encoded together.

        Raises InputError if there are masks but no encoder.
        """
        needed = [(one.mask, one.box) for row in examples for one in row.objects if _encoded(row) and one.mask]
        codes = self._codes_of(needed)
        return [
            replace(row, suffix=answer_text(row.objects, row.image_size or (0, 0), [
                codes[one.mask, one.box] if one.mask else None for one in row.objects
            ])) if _encoded(row) else row
            for row in examples
        ]  # fmt: skip

    def _codes_of(self, wanted: Sequence[tuple[Mask, Box]]) -> dict[tuple[Mask, Box], Codes]:
        known = {key: self._codes[key] for key in wanted if key in self._codes}
        missing = [key for key in dict.fromkeys(wanted) if key not in known]
        if missing and self._encoder is None:
            raise InputError(
                "segment answers need the mask encoder of vae-oid.npz, which this checkpoint is without; name one"
            )
        for start in range(0, len(missing), AT_ONCE):
            keys = missing[start : start + AT_ONCE]
            crops = np.stack([mask_crop(mask, box) for mask, box in keys])
            found = np.array(self._encoder(crops)).tolist()  # type: ignore[misc]  # checked above
            known |= {key: tuple(row) for key, row in zip(keys, found, strict=True)}
        self._codes |= known
        while len(self._codes) > CACHED:
            self._codes.popitem(last=False)
        return known


def mask_crop(mask: Mask, box: Box) -> np.ndarray:
    """float32 [64, 64] in 0..1: the mask in its box, rounded to pixels, as the encoder reads it."""
    left, top, right, bottom = map(round, box)
    return crop(mask.bitmap(), (left, top, max(right, left + 1), max(bottom, top + 1)))


def _encoded(row: Example) -> bool:
    """Whether the answer is made of masks."""
    return row.kind == "segment" and any(one.mask for one in row.objects)
