"""Masks between their own 64 x 64 and a picture's pixels."""

from __future__ import annotations

import numpy as np
from PIL import Image

MASK_SIDE = 64
"""As mask_vae.MASK_SIDE, which cannot be imported from here: it would bring MLX."""

PixelBox = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; x1 and y1 are one past the last pixel."""


def paste(decoded: np.ndarray, box: PixelBox, image_size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: the decoded mask (float32 [64, 64]), stretched to the box, where it is positive.

    As big_vision's evaluator does it: bilinear resizing of the floats, then > 0. All False for an empty box.
    """
    picture = np.zeros(image_size[::-1], bool)
    picture[_slices(box)] = inside(decoded, box)
    return picture


def inside(decoded: np.ndarray, box: PixelBox) -> np.ndarray:
    """bool [box height, box width]: the part of `paste` within the box."""
    return _resized(decoded, box) > 0


def paste_soft(decoded: np.ndarray, box: PixelBox, image_size: tuple[int, int]) -> np.ndarray:
    """float32 [H, W] in 0..1: the same without a threshold. -1..1 is mapped to 0..1, and the rest is clipped.

    Up to rounding it is above 0.5 where `paste` is True. It is 0 outside the box.
    """
    picture = np.zeros(image_size[::-1], np.float32)
    picture[_slices(box)] = np.clip(_resized(decoded, box) / 2 + np.float32(0.5), 0, 1)
    return picture


def crop(mask: np.ndarray, box: PixelBox) -> np.ndarray:
    """float32 [64, 64] in 0..1, what MaskEncoder reads: the part of a mask [H, W] (bool, or float in 0..1) in a box.

    As for big_vision's training data: antialiased bilinear resizing. Zeros for an empty box.
    """
    part = np.asarray(mask, np.float32)[_slices(box)]
    if not part.size:
        return np.zeros((MASK_SIDE, MASK_SIDE), np.float32)
    return np.asarray(Image.fromarray(part).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BILINEAR))


def _slices(box: PixelBox) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    return slice(y0, y1), slice(x0, x1)


def _resized(decoded: np.ndarray, box: PixelBox) -> np.ndarray:
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return np.zeros((max(0, y1 - y0), max(0, x1 - x0)), np.float32)
    image = Image.fromarray(np.ascontiguousarray(decoded, np.float32))
    return np.asarray(image.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR))
