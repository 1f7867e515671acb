"""COCO's run-length form of masks, which pycocotools and most labelling tools read.

Runs go down the columns, and the first one is of zeros. A count is written as its difference to the count two before.
Each letter holds five bits, the lowest first: 48 + bits, and + 32 if more letters follow.
Format: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c (rleToString)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypedDict

import numpy as np

from ..errors import InputError


class Rle(TypedDict):
    """size: [height, width]. counts: the runs as a string."""

    size: list[int]
    counts: str


def encode(mask: np.ndarray) -> Rle:
    """Run lengths of a mask bool [H, W]."""
    height, width = mask.shape
    flat = np.asarray(mask, bool).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(edges).tolist()
    return {"size": [height, width], "counts": _write([0, *counts] if flat[:1].any() else counts)}


def decode(rle: Rle) -> np.ndarray:
    """The mask bool [H, W]. Raises InputError if the counts are malformed or do not fit the size."""
    height, width = rle["size"]
    counts = list(_read(rle["counts"]))
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise InputError(f"the run lengths do not make up a mask of {width} x {height}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def _write(counts: list[int]) -> str:
    letters = bytearray()
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        while True:
            bits, rest = rest & 31, rest >> 5
            done = rest == (-1 if bits & 16 else 0)  # the last letter's highest bit is the sign
            letters.append(48 + bits + (0 if done else 32))
            if done:
                break
    return letters.decode("ascii")


def _read(letters: str) -> Iterator[int]:
    before: list[int] = []
    for count in _differences(ord(letter) - 48 for letter in letters):
        before.append(count + before[-2] if len(before) > 2 else count)
        yield before[-1]


def _differences(values: Iterable[int]) -> Iterator[int]:
    count = shift = 0
    for value in values:
        if not 0 <= value < 64:
            raise InputError("the run lengths hold a letter that is not part of the format")
        count |= (value & 31) << shift
        shift += 5
        if not value & 32:
            yield count - (1 << shift) if value & 16 else count
            count = shift = 0
    if shift:
        raise InputError("the run lengths end inside a number")
