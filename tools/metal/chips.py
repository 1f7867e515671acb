"""Kinds of Apple GPUs, as far as MLX chooses kernels by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chip:
    """generation: 13 for M1 ... 17 for M5. size: MLX's letter, g (plain and Pro), s (Max) or d (Ultra)."""

    name: str
    generation: int
    size: str

    @property
    def nax(self) -> bool:
        """Whether it has matrix units ("neural accelerators"), for which MLX has other kernels (NAX)."""
        return self.generation >= 17

    def fuses(self, query: Any, key: Any, mask: Any = None) -> bool:
        """Whether mx.fast.scaled_dot_product_attention is a kernel of its own, and not a sequence of operations."""
        heads, length, head_dim = query.shape[1:]
        if length > 8:
            split = self.nax and head_dim == 256 and length >= 1024 and mask is not None
            return head_dim in (64, 72, 80, 96, 128) or split
        rows = length * heads // key.shape[1]
        return head_dim in (64, 96, 128, 256) and length <= key.shape[2] and rows <= 32


CHIPS = (
    Chip("M1", 13, "g"),
    Chip("M2 Max", 14, "s"),
    Chip("M2 Ultra", 14, "d"),
    Chip("M4", 16, "g"),
    Chip("M4 Max", 16, "s"),
    Chip("M3 Ultra", 15, "d"),
    Chip("M5", 17, "g"),
    Chip("M5 Max", 17, "s"),
)
"""Among them, every case that MLX tells apart."""
