"""How much memory a model takes: told before any weight is read, kept within, and used where there is more."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import InputError
from ..linear import Matrix, matrices
from ..ops import device
from ..ops.device import dtype_name
from ..paligemma import PaliGemma

SPARE_BYTES = {"gpu": 512 << 20, "cpu": 128 << 20}
"""Freed memory that MLX keeps for reuse. Its default on Metal is everything; that on the CPU, 32 MB, is too little to
hold the scratch of a matrix product, and fresh memory costs as much as filling it."""


SMALL_BYTES = 64 << 20
"""A model whose weights take at most so much more in float32 is unpacked without being asked for, on the CPU backend.
There a packed product costs its time again for every row of a batch, and unpacking costs it for every pass."""


def check_copies(dtype: mx.Dtype) -> None:
    """Raises InputError where float32 copies of packed weights are of no use."""
    if device.gpu_ops():
        raise InputError(
            "memory for float32 copies only serves the CPU backend; a GPU multiplies packed weights faster"
        )
    if dtype != mx.float32:
        raise InputError(f"memory for float32 copies is of no use to {dtype_name(dtype)}")


def dequantize_within(model: PaliGemma, room: int) -> None:
    """Keep float32 weights in place of packed ones, as many as fit in `room` more bytes: the decoder's layers, which
    every token reads, then the head, then the tower's layers and the connector, which a picture reads once."""
    text = model.language_model
    for part in (*text.layers, text.embed_tokens, *model.vision_tower.layers, model.connector):
        packed = [matrix for matrix in matrices(part) if matrix.quantization]
        more = _growth(packed)
        if packed and more <= room:
            room -= more
            for matrix in packed:
                matrix.dequantize_in_place()


def dequantize_if_small(model: PaliGemma) -> None:
    """All packed weights become float32 where that is of use and takes no more than SMALL_BYTES."""
    if not device.gpu_ops() and model.dtype == mx.float32:
        more = _growth([matrix for matrix in matrices(model) if matrix.quantization])
        if more <= SMALL_BYTES:
            dequantize_within(model, more)


def _growth(packed: list[Matrix]) -> int:
    """Bytes that their float32 weights take more."""
    return sum(4 * matrix.num_outputs * matrix.num_columns - matrix.packed_bytes for matrix in packed)


def held_bytes(module: nn.Module) -> int:
    """Of all its parameters."""
    named: Any = tree_flatten(module.parameters())
    return sum(array.nbytes for _, array in named)


def keep_within(model_bytes: int) -> None:
    """Bound what MLX keeps for reuse and, on macOS, keep the model resident: its size, that cache and a GB for keys,
    values and activations. Wiring the maximum has brought systems down, so that is never asked for."""
    spare = SPARE_BYTES["gpu" if device.gpu_ops() else "cpu"]
    mx.set_cache_limit(spare)
    if device.gpu_ops() and mx.metal.is_available():
        wanted = model_bytes + spare + 10**9
        if wanted < int(mx.device_info()["max_recommended_working_set_size"]):
            previous = mx.set_wired_limit(wanted)
            if previous > wanted:  # another model's
                mx.set_wired_limit(previous)
