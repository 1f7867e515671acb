"""Conversions without a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import mlx.core as mx

import pg_mlx
from pg_mlx.checkpoint.open import Checkpoint
from pg_mlx.conversion.calibrate import Arrays, is_calibrated
from pg_mlx.conversion.plan import Module
from pg_mlx.quantization import pack_fitted, pad_columns, pad_rows

FOLDERS = ["pg1_classic", "pg1_new", "pg2_classic", "pg2_new"]


EMBEDDING = "language_model.model.embed_tokens.weight"


convert = partial(pg_mlx.convert, check=False)


weights_only = partial(convert, need_tokenizer=False)


def fitted(
    checkpoint: Checkpoint, modules: list[Module], pictures: list, texts: list, dtype: mx.Dtype
) -> Iterator[tuple[str, Arrays]]:
    """In the place of `calibrate.calibrated`, for tests of what is around it: the codes are those of "mse", quickly."""
    for module in filter(is_calibrated, modules):
        weight = pad_rows(checkpoint.source.read(f"{module.name}.weight"), module.padded[0])
        assert module.target is not None
        yield module.name, pack_fitted(pad_columns(weight, module.padded[1]), module.target, dtype)
