"""The bits with which Metal multiplies one token by its fast kernel.

MLX takes that kernel (qmv_fast) where the columns are a multiple of 512 with 2 to 5 bits, and of 256 with 6 and 8. Any
other matrix takes a slower one. PaliGemma 2 3B is 2304 wide, which is 9 x 256.
"""

from __future__ import annotations

from .modes import AFFINE_BITS

_NARROW, _WIDE = 512, 256
"""The columns must be a multiple of this: up to 5 bits, and from 6 bits."""


def is_fast(columns: int, bits: int) -> bool:
    """Whether a matrix with so many columns has the fast kernel."""
    return columns % (_NARROW if bits <= 5 else _WIDE) == 0


def fast_widths(columns: int) -> tuple[int, ...]:
    """The bits with the fast kernel; all, if there is none with it, since then none is better than another."""
    return tuple(bits for bits in AFFINE_BITS if is_fast(columns, bits)) or AFFINE_BITS
