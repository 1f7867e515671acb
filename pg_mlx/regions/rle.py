"""COCO's run-length form of masks, which pycocotools and most labelling tools read.

Runs go down the columns, and the first one is of zeros. A count is written as its difference to the count two before.
Each letter holds five bits, the lowest first: 48 + bits, and + 32 if more letters follow.
Format: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c (rleToString)
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from ..errors import InputError

_MAX_SHIFT = 40
"""Bits of the largest count that is read: far more than a picture has pixels."""


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
    counts = _read(rle["counts"])
    pixels = height * width
    if counts.min(initial=0) < 0 or counts.max(initial=0) > pixels or counts.sum() != pixels:
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


def _read(letters: str) -> np.ndarray:
    """The runs int64. All letters at once: masks of a dataset have millions."""
    values = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64) - 48
    if not values.size:
        return values
    if values.min() < 0 or values.max() >= 64:
        raise InputError("the run lengths hold a letter that is not part of the format")
    last = values < 32  # letters that end a number
    if not last[-1]:
        raise InputError("the run lengths end inside a number")
    behind = np.flatnonzero(last) + 1
    starts = np.concatenate([[0], behind[:-1]])
    shifts = 5 * (np.arange(values.size) - np.repeat(starts, behind - starts))
    if shifts.max() > _MAX_SHIFT:
        raise InputError("the run lengths hold a number that is too large")
    counts = np.add.reduceat((values & 31) << shifts, starts)
    counts -= np.where(values[last] & 16, np.left_shift(1, shifts[last] + 5), 0)  # the sign
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts
