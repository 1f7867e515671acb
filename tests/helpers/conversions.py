"""Conversions without a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

import pg_mlx
from pg_mlx.checkpoint.open import Checkpoint
from pg_mlx.conversion.calibrate import Arrays, calibrated_modules
from pg_mlx.conversion.plan import Module
from pg_mlx.quantization import pack_fitted, pad_columns, pad_rows

FOLDERS = ["pg1_classic", "pg1_new", "pg2_classic", "pg2_new"]


EMBEDDING = "language_model.model.embed_tokens.weight"


convert = partial(pg_mlx.convert, check=False)


weights_only = partial(convert, need_tokenizer=False)


def fitted(
    checkpoint: Checkpoint, modules: list[Module], pictures: list, texts: list, hidden: mx.array, dtype: mx.Dtype
) -> Iterator[tuple[str, Arrays]]:
    """In the place of `calibrate.calibrated`, for tests of what is around it: the codes are those of "mse", quickly."""
    for module in calibrated_modules(modules).values():
        weight = pad_rows(checkpoint.source.read(f"{module.name}.weight"), module.padded[0])
        assert module.target is not None
        yield module.name, pack_fitted(pad_columns(weight, module.padded[1]), module.target, dtype)


def sixteen_pictures(folder: Path) -> Path:
    """The folder, with small pictures in it of which no two are alike: 00.png to 15.png."""
    chance = np.random.default_rng(0)
    for number in range(16):
        coarse = Image.fromarray(chance.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((56, 56)).save(folder / f"{number:02}.png")
    return folder
