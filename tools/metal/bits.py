"""bfloat16 in NumPy, which has no such dtype: uint16 arrays hold the bits."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
DType: TypeAlias = npt.DTypeLike


def to_bfloat16(x: Array) -> Array:
    """float [...] -> the bits of the nearest bfloat16, uint16 [...]. Ties go to even."""
    words = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype(np.uint16)


def from_bfloat16(bits: Array) -> Array:
    """The bits of bfloat16 values, uint16 [...] -> float32 [...]."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)


def rounded(x: Array) -> Array:
    """float [...] -> float32 [...] with values that bfloat16 has."""
    return from_bfloat16(to_bfloat16(x))
