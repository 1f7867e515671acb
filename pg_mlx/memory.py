"""How much memory a model takes: told before any weight is read, kept within, and used where there is more."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from . import blocks, host
from .backend import on_gpu, unpacks
from .config import PaliGemmaConfig
from .errors import InputError
from .linear import Matrix, matrices
from .paligemma import PaliGemma
from .quantization import Quantization

PROMPT_TOKENS = 64
"""Prompt that an estimate allows for."""

ANSWER_TOKENS = 256
"""Answer that it allows for; the cache has room for as many from the beginning."""

SPARE_BYTES = {"gpu": 512 << 20, "cpu": 128 << 20}
"""Freed memory that MLX keeps for reuse. Its default on Metal is everything; that on the CPU, 32 MB, is too little to
hold the scratch of a matrix product, and fresh memory costs as much as filling it."""


SMALL_BYTES = 64 << 20
"""A model whose weights take at most so much more in float32 is unpacked without being asked for, on the CPU backend.
There a packed product costs its time again for every row of a batch, and unpacking costs it for every pass."""


def pass_bytes(
    config: PaliGemmaConfig, dtype: mx.Dtype, tower: Quantization | None, decoder: Quantization | None
) -> int:
    """The most that encoding one picture, reading it with a prompt or a step of the answer should hold beside the
    weights: keys and values, and what the widest part of a layer computes. tower, decoder: how their MLPs are packed.
    """
    packings = {q for q in (tower, decoder) if q and not on_gpu()}
    scratch = sum(host.scratch_bytes(q) for q in packings)
    return scratch + max(_vision_bytes(config, dtype.size, tower), _prefix_bytes(config, dtype.size, decoder))


def _vision_bytes(config: PaliGemmaConfig, itemsize: int, packed: Quantization | None) -> int:
    vision, patches = config.vision, config.vision.num_patches
    scores = 0 if on_gpu() else _copies(itemsize) * min(vision.num_attention_heads * patches**2, blocks.VALUES)
    attention = (8 * patches * vision.hidden_size + scores) * itemsize
    mlp = patches * vision.intermediate_size * (itemsize + _activation_bytes(itemsize))
    residual = 2 * patches * vision.hidden_size * itemsize
    unpacked = _unpacked_bytes(packed, patches, vision.intermediate_size * vision.hidden_size, itemsize)
    return residual + max(attention, mlp) + unpacked


def _prefix_bytes(config: PaliGemmaConfig, itemsize: int, packed: Quantization | None) -> int:
    text, tokens = config.text, config.vision.num_patches + PROMPT_TOKENS
    scores = text.num_attention_heads * tokens**2
    attention = _copies(itemsize) * (scores if on_gpu() else min(scores, blocks.VALUES)) * itemsize
    together = tokens if on_gpu() else min(tokens, max(1, blocks.VALUES // (2 * text.intermediate_size)))
    mlp = together * text.intermediate_size * (2 * itemsize + _activation_bytes(itemsize))
    heads = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    residual = tokens * ((8 * text.hidden_size + 3 * heads) * itemsize + 2 * text.hidden_size * 4)
    unpacked = _unpacked_bytes(packed, tokens, 2 * text.intermediate_size * text.hidden_size, itemsize)
    cache = text.cache_bytes(itemsize) * (tokens + ANSWER_TOKENS)
    return residual + max(attention, mlp) + unpacked + cache + 2 * 4 * text.vocab_size


def _copies(itemsize: int) -> int:
    """Of attention scores; NumPy computes in place."""
    return 1 if itemsize == 4 and not on_gpu() else 2


def _activation_bytes(itemsize: int) -> int:
    """For each value that a GELU gives: its result, and in 16 bits on the CPU float32 on the way."""
    return 4 if itemsize == 4 or on_gpu() else 16


def _unpacked_bytes(packed: Quantization | None, rows: int, largest: int, itemsize: int) -> int:
    """What is unpacked at once of a layer whose largest matrix has so many weights."""
    if packed is None or not unpacks(packed, rows):
        return 0
    if on_gpu():
        return 2 * largest * itemsize
    return min(largest, host.TILE) * (4 if itemsize == 4 else 4 + itemsize)


def check_fits(needed: int, allowed: int) -> None:
    """Raises InputError if so many bytes are more than allowed."""
    if needed > allowed:
        raise InputError(f"this model needs {_told(needed)} of memory, more than the {_told(allowed)} allowed")


def _told(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def check_copies(dtype: mx.Dtype) -> None:
    """Raises InputError where float32 copies of packed weights are of no use."""
    if on_gpu():
        raise InputError(
            "memory for float32 copies only serves the CPU backend; a GPU multiplies packed weights faster"
        )
    if dtype != mx.float32:
        raise InputError(f"memory for float32 copies is of no use to {str(dtype).removeprefix('mlx.core.')}")


def keep_floats(model: PaliGemma, room: int) -> None:
    """Keep float32 weights in place of packed ones, as many as fit in `room` more bytes: the decoder's layers, which
    every token reads, then the head, then the tower's layers and the connector, which a picture reads once."""
    text = model.language_model
    for part in (*text.layers, text.embed_tokens, *model.vision_tower.layers, model.connector):
        packed = [matrix for matrix in matrices(part) if matrix.quantization]
        more = _growth(packed)
        if packed and more <= room:
            room -= more
            for matrix in packed:
                matrix.widen()


def keep_floats_if_small(model: PaliGemma) -> None:
    """All packed weights become float32 where that is of use and takes no more than SMALL_BYTES."""
    if not on_gpu() and model.dtype == mx.float32:
        more = _growth([matrix for matrix in matrices(model) if matrix.quantization])
        if more <= SMALL_BYTES:
            keep_floats(model, more)


def _growth(packed: list[Matrix]) -> int:
    """Bytes that their float32 weights take more."""
    return sum(4 * matrix.num_rows * matrix.num_columns - matrix.packed_bytes for matrix in packed)


def held_bytes(module: nn.Module) -> int:
    """Of all its parameters."""
    named: Any = tree_flatten(module.parameters())
    return sum(array.nbytes for _, array in named)


def keep_within(model_bytes: int) -> None:
    """Bound what MLX keeps for reuse and, on macOS, keep the model resident: its size, that cache and a GB for keys,
    values and activations. Wiring the maximum has brought systems down, so that is never asked for."""
    spare = SPARE_BYTES["gpu" if on_gpu() else "cpu"]
    mx.set_cache_limit(spare)
    if on_gpu() and mx.metal.is_available():
        wanted = model_bytes + spare + 10**9
        if wanted < int(mx.device_info()["max_recommended_working_set_size"]):
            previous = mx.set_wired_limit(wanted)
            if previous > wanted:  # another model's
                mx.set_wired_limit(previous)
