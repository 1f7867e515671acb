"""The mask of an object in training data, kept as run lengths: small, comparable, and the same for every source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..regions import rle

Box = tuple[float, float, float, float]
"""left, top, right, bottom in pixels of the picture."""

TOLERANCE = 2.0
"""Pixels that a box or a polygon may stick out of its picture, as tools that round leave it. It is cut there."""


@dataclass(frozen=True)
class Mask:
    """Which pixels of a picture belong to an object."""

    size: tuple[int, int]
    """Width and height of the picture in pixels."""
    counts: str
    """COCO's compressed run lengths, down the columns."""

    @classmethod
    def from_bitmap(cls, bitmap: np.ndarray) -> Mask:
        """bitmap: bool [H, W]."""
        height, width = bitmap.shape
        return cls((width, height), rle.encode(bitmap)["counts"])

    @classmethod
    def from_polygons(cls, polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Mask:
        """The union of polygons x, y, x, y, ... in pixels, filled as COCO does (pycocotools). size: width, height.

        Raises InputError for fewer than three points, for what is no number, for points that lie more than TOLERANCE
        outside the picture, or without pycocotools.
        """
        polygons = [_checked_polygon(polygon, size) for polygon in polygons]
        if not polygons:
            raise InputError("the segmentation has no polygon")
        merged = coco_masks().merge(coco_masks().frPyObjects(polygons, size[1], size[0]))
        return cls(size, merged["counts"].decode("ascii"))

    @classmethod
    def from_rle(cls, value: Any, size: tuple[int, int]) -> Mask:
        """COCO's {"size": [height, width], "counts": text or whole numbers}, for a picture of this width and height.

        Raises InputError if it is for another size, or malformed.
        """
        if not isinstance(value, dict) or value.get("size") != [size[1], size[0]]:
            shown = value.get("size") if isinstance(value, dict) else value
            raise InputError(f"the run lengths have size {_short(shown)}, but the picture is [{size[1]}, {size[0]}]")
        counts = value.get("counts")
        if isinstance(counts, str):
            return cls.from_bitmap(rle.decode({"size": value["size"], "counts": counts}))
        if not isinstance(counts, list) or any(type(count) is not int or count < 0 for count in counts):
            raise InputError(f"counts is {_short(counts)}, but must be text or whole numbers")
        if sum(counts) != size[0] * size[1]:
            raise InputError(
                f"the run lengths hold {_short(sum(counts))} pixels, but the picture has {size[0] * size[1]}"
            )
        values = np.arange(len(counts)) % 2 == 1
        return cls.from_bitmap(np.repeat(values, counts).reshape((size[1], size[0]), order="F"))

    def bitmap(self) -> np.ndarray:
        """bool [H, W]."""
        width, height = self.size
        return rle.decode({"size": [height, width], "counts": self.counts})

    def box(self) -> Box | None:
        """The smallest box of whole pixels around it; None if it is empty."""
        return bitmap_box(self.bitmap())


def bitmap_box(bitmap: np.ndarray) -> Box | None:
    """left, top, right, bottom (one past the last pixel) of what is True in bool [H, W]; None if nothing is."""
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    if not rows.size:
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def coco_masks() -> Any:
    """pycocotools.mask. Raises InputError, with the way to install it, if it is not there."""
    try:
        from pycocotools import mask
    except ImportError:
        raise InputError(
            "polygons and mAP need pycocotools, which is not installed: python -m pip install 'pg_mlx[train]'"
        ) from None
    return mask


def _checked_polygon(polygon: Any, size: tuple[int, int]) -> list[float]:
    if not isinstance(polygon, (list, tuple)) or any(
        isinstance(value, bool) or not isinstance(value, (int, float)) for value in polygon
    ):
        raise InputError(f"a polygon is {_short(polygon)}, but must be a list of numbers x, y, x, y, ...")
    try:
        polygon = [float(value) for value in polygon]
    except OverflowError:
        polygon = [math.inf]
    if not all(map(math.isfinite, polygon)):
        raise InputError("a polygon holds NaN or infinity")
    if len(polygon) % 2 or len(polygon) < 6:
        raise InputError(f"a polygon has {len(polygon)} numbers, but needs x and y of three points at least")
    for axis, side in enumerate(size):
        places = polygon[axis::2]
        if min(places) < -TOLERANCE or max(places) > side + TOLERANCE:
            found = f"{'xy'[axis]} from {min(places):g} to {max(places):g}"
            raise InputError(f"a polygon leaves the picture of {size[0]} x {size[1]}: {found}")
    return polygon


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
