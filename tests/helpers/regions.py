"""Regions to draw and to write, with masks that need no decoder."""

from __future__ import annotations

import numpy as np
from PIL import Image

from helpers.paths import GOLDEN
from pg_mlx.regions import Region

SEG = GOLDEN / "seg"
ARCHIVE = SEG / "vae_tiny.npz"


def loc(*numbers: int) -> str:
    return "".join(f"<loc{n:04}>" for n in numbers)


def seg(codes: tuple[int, ...]) -> str:
    return "".join(f"<seg{n:03}>" for n in codes)


def blob(phase: float = 0.0) -> np.ndarray:
    """float32 [64, 64], a flower: positive within, negative without."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    return (0.85 + 0.12 * np.sin(5 * np.arctan2(y, x) + phase) - np.hypot(x, y)).astype(np.float32)


def region(
    label: str,
    locations: tuple[int, int, int, int],
    size: tuple[int, int],
    score: float | None = None,
    mask: bool = False,
) -> Region:
    codes, decoded = ((0,) * 16, blob()) if mask else (None, None)
    return Region(label, locations, size, codes=codes, score=score, decoded=decoded)


def scene(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Soft colours, nowhere plain, of any size."""
    patches = np.random.default_rng(seed).integers(40, 220, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)
