"""The memory of a loaded model: its size, a limit for what MLX keeps, and float copies where memory is left."""

from __future__ import annotations

import gc
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import InputError
from ..linear import Matrix, matrices
from ..ops import device
from ..ops.device import dtype_name
from ..paligemma import PaliGemma
from .estimate import scratch_bytes

SPARE_BYTES = {"gpu": 512 << 20, "cpu": 128 << 20}
"""Freed memory that MLX keeps for reuse. Its default on Metal is everything; that on the CPU, 32 MB, is too little to
hold the scratch of a matrix product, and fresh memory costs as much as filling it."""


SMALL_BYTES = 64 << 20
"""The CPU backend holds a quantized model in float32 if its weights then take at most so much more. There a packed
product costs its time again for every row of a batch, and unpacking costs it for every pass."""


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
    every token reads, then the head (and the embedding), then the tower's layers and the connector, which a picture
    reads once."""
    text = model.language_model
    tables = (text.head_table,) if text.head_table is text.embed_tokens else (text.head_table, text.embed_tokens)
    for part in (*text.layers, *tables, *model.vision_tower.layers, model.connector):
        packed = [matrix for matrix in matrices(part) if matrix.quantization]
        more = _growth(packed)
        if packed and more <= room:
            room -= more
            for matrix in packed:
                matrix.dequantize_in_place()


def dequantize_if_small(model: PaliGemma, most: int = SMALL_BYTES) -> None:
    """All packed weights become float32 where that is of use and takes at most so many bytes more."""
    if not device.gpu_ops() and model.dtype == mx.float32:
        more = _growth([matrix for matrix in matrices(model) if matrix.quantization])
        if more <= most:
            dequantize_within(model, more)


def _growth(packed: list[Matrix]) -> int:
    """How many bytes more these matrices take in float32."""
    return sum(4 * matrix.num_outputs * matrix.num_columns - matrix.packed_bytes for matrix in packed)


def held_bytes(module: nn.Module) -> int:
    """Bytes of all its parameters."""
    named: Any = tree_flatten(module.parameters())
    return sum(array.nbytes for _, array in named)


class HeldPart(NamedTuple):
    """What a process holds of a model; all of it, unless several processes share the model (parallel/)."""

    about: str
    """Which process, where, and which part, in words."""
    weight_bytes: int
    token_bytes: int
    """Bytes that the keys and values of one token take."""

    @classmethod
    def whole(cls, model: PaliGemma) -> HeldPart:
        """All of a model."""
        return cls("all layers", held_bytes(model), model.config.text.cache_bytes(model.dtype.size))


def model_scratch_bytes(model: PaliGemma, pictures: int, tokens: int, rows: int) -> int:
    """estimate.scratch_bytes for a loaded model: pictures encoded at a time, tokens of prefixes that are read together,
    rows of a batch."""
    tower, decoder = (
        next((matrix.quantization for layer in layers for matrix in matrices(layer.mlp) if matrix.quantization), None)
        for layers in (model.vision_tower.layers, model.language_model.layers)
    )
    return scratch_bytes(model.config, model.dtype, pictures, tokens, rows, tower, decoder)


def keep_within(model_bytes: int) -> None:
    """Limit what MLX keeps for reuse and, on macOS, keep the model resident: its size, that cache and a GB for keys,
    values and activations. Wiring the maximum has crashed systems, so it is never done."""
    spare = SPARE_BYTES["gpu" if device.gpu_ops() else "cpu"]
    mx.set_cache_limit(spare)
    if device.gpu_ops() and mx.metal.is_available():
        wanted = model_bytes + spare + 10**9
        if wanted < int(mx.device_info()["max_recommended_working_set_size"]):
            previous = mx.set_wired_limit(wanted)
            if previous > wanted:  # another model's
                mx.set_wired_limit(previous)


def release() -> None:
    """Give back the memory of a model that nobody holds any more, after what this thread has begun with it."""
    device.finish()
    gc.collect()
    mx.clear_cache()
