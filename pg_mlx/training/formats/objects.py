"""Labelled objects of any format, checked against their picture."""

from __future__ import annotations

import math
import re
from typing import Any

from ...errors import InputError
from ..example import LabelledObject
from ..masks import TOLERANCE, Box, Mask

_NO_LABEL = re.compile(r"<loc\d{4}>|<seg\d{3}>|;", re.ASCII)


def checked_label(label: Any) -> str:
    """A label, with single spaces. Raises InputError if it is empty, or could not be read back from an answer."""
    if not isinstance(label, str) or not label.strip():
        raise InputError(f"the label is {str(label)[:40]!r}, but must be text")
    label = " ".join(label.split())
    if found := _NO_LABEL.search(label):
        raise InputError(f"the label {label[:60]!r} holds {found[0]}, which separates records; rename it")
    try:
        label.encode()
    except UnicodeEncodeError:
        raise InputError("the label is not valid Unicode") from None
    return label


def numbers(values: Any, count: int | None, what: str) -> list[float]:
    """The values as floats. count: how many there must be, if that is fixed. Raises InputError."""
    wrong = not isinstance(values, list) or (count is not None and len(values) != count)
    if wrong or any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
        wanted = "numbers" if count is None else f"{count} numbers"
        raise InputError(f"{what} is {str(values)[:60]}, but must be a list of {wanted}")
    try:
        values = [float(value) for value in values]
    except OverflowError:
        values = [math.inf]
    if not all(map(math.isfinite, values)):
        raise InputError(f"{what} is {str(values)[:60]}: NaN or infinity is no place in a picture")
    return values


def checked_box(box: Box, size: tuple[int, int]) -> Box:
    """A box in its picture (size: width and height). Raises InputError for one of no size, or outside of it."""
    left, top, right, bottom = box
    width, height = size
    shown = f"{left:g}, {top:g}, {right:g}, {bottom:g}"
    if right <= left or bottom <= top:
        raise InputError(f"the box {shown} (left, top, right, bottom) has no size")
    if left < -TOLERANCE or top < -TOLERANCE or right > width + TOLERANCE or bottom > height + TOLERANCE:
        raise InputError(f"the box {shown} (left, top, right, bottom) is outside the picture of {width} x {height}")
    left, top, right, bottom = max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
    if right <= left or bottom <= top:
        raise InputError(f"the box {shown} (left, top, right, bottom) is outside the picture of {width} x {height}")
    return left, top, right, bottom


def labelled(label: Any, box: Box | None, mask: Mask | None, size: tuple[int, int]) -> LabelledObject:
    """An object, its box that of the mask if none is given. Raises InputError for what is wrong with it."""
    if mask is not None:
        around = mask.box()
        if around is None:
            raise InputError("the mask is empty: it holds no pixel of the picture")
        box = box or around
    if box is None:
        raise InputError("the object has neither a box nor a mask")
    return LabelledObject(checked_label(label), checked_box(box, size), mask)
