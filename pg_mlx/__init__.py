"""pg_mlx: PaliGemma 1 and 2 on MLX.

    import pg_mlx
    model, processor = pg_mlx.load("google/paligemma2-3b-mix-448")
    print(pg_mlx.generate(model, processor, "caption en", "cat.jpg").text)

Names are imported when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .ops import blas

__version__ = "0.1.0"

blas.preload()  # before anything imports MLX

if TYPE_CHECKING:
    from .checkpoint.load import load, load_model
    from .config import PaliGemmaConfig
    from .conversion import convert
    from .errors import InputError, PgMlxError
    from .generation import (
        Generation,
        Stats,
        Step,
        TokenLogprob,
        batch_generate,
        generate,
        stream_batch,
        stream_generate,
        warm_up,
    )
    from .paligemma import PaliGemma
    from .processor import Processor
    from .regions import Region, RegionParser, format_region, parse_regions
    from .regions.mask_vae import MaskDecoder, MaskEncoder

_HOMES = {
    "convert": ".conversion",
    "load": ".checkpoint.load",
    "load_model": ".checkpoint.load",
    "PaliGemmaConfig": ".config",
    "InputError": ".errors",
    "PgMlxError": ".errors",
    "Generation": ".generation",
    "Stats": ".generation",
    "Step": ".generation",
    "TokenLogprob": ".generation",
    "batch_generate": ".generation",
    "generate": ".generation",
    "stream_batch": ".generation",
    "stream_generate": ".generation",
    "warm_up": ".generation",
    "PaliGemma": ".paligemma",
    "Processor": ".processor",
    "MaskDecoder": ".regions.mask_vae",
    "MaskEncoder": ".regions.mask_vae",
    "Region": ".regions",
    "RegionParser": ".regions",
    "format_region": ".regions",
    "parse_regions": ".regions",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pg_mlx' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
