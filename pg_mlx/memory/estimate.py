""""""

from __future__ import annotations

import mlx.core as mx

from ..config import PaliGemmaConfig
from ..errors import InputError
from ..ops import blocks, device, products
from ..quantization.modes import Quantization

PROMPT_TOKENS = 64
"""Prompt that an estimate allows for."""


ANSWER_TOKENS = 256
"""Answer that it allows for; the cache has room for as many from the beginning."""


def pass_bytes(
    config: PaliGemmaConfig, dtype: mx.Dtype, tower: Quantization | None, decoder: Quantization | None
) -> int:
    """The most that encoding one picture, reading it with a prompt or a step of the answer should hold beside the
    weights: keys and values, and what the widest part of a layer computes. tower, decoder: how their MLPs are packed.
    """
    packings = {q for q in (tower, decoder) if q and not device.gpu_ops()}
    scratch = sum(products.scratch_bytes(q) for q in packings)
    return scratch + max(_vision_bytes(config, dtype.size, tower), _prefix_bytes(config, dtype.size, decoder))


def _vision_bytes(config: PaliGemmaConfig, itemsize: int, packed: Quantization | None) -> int:
    vision, patches = config.vision, config.vision.num_patches
    scores = 0 if device.gpu_ops() else _copies(itemsize) * min(vision.num_attention_heads * patches**2, blocks.VALUES)
    attention = (8 * patches * vision.hidden_size + scores) * itemsize
    mlp = patches * vision.intermediate_size * (itemsize + _activation_bytes(itemsize))
    residual = 2 * patches * vision.hidden_size * itemsize
    unpacked = _unpacked_bytes(packed, patches, vision.intermediate_size * vision.hidden_size, itemsize)
    return residual + max(attention, mlp) + unpacked


def _prefix_bytes(config: PaliGemmaConfig, itemsize: int, packed: Quantization | None) -> int:
    text, tokens = config.text, config.vision.num_patches + PROMPT_TOKENS
    scores = text.num_attention_heads * tokens**2
    attention = _copies(itemsize) * (scores if device.gpu_ops() else min(scores, blocks.VALUES)) * itemsize
    together = tokens if device.gpu_ops() else min(tokens, max(1, blocks.VALUES // (2 * text.intermediate_size)))
    mlp = together * text.intermediate_size * (2 * itemsize + _activation_bytes(itemsize))
    heads = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    residual = tokens * ((8 * text.hidden_size + 3 * heads) * itemsize + 2 * text.hidden_size * 4)
    unpacked = _unpacked_bytes(packed, tokens, 2 * text.intermediate_size * text.hidden_size, itemsize)
    cache = text.cache_bytes(itemsize) * (tokens + ANSWER_TOKENS)
    return residual + max(attention, mlp) + unpacked + cache + 2 * 4 * text.vocab_size


def _copies(itemsize: int) -> int:
    """Of attention scores; NumPy computes in place."""
    return 1 if itemsize == 4 and not device.gpu_ops() else 2


def _activation_bytes(itemsize: int) -> int:
    """For each value that a GELU gives: its result, and in 16 bits on the CPU float32 on the way."""
    return 4 if itemsize == 4 or device.gpu_ops() else 16


def _unpacked_bytes(packed: Quantization | None, rows: int, largest: int, itemsize: int) -> int:
    """What is unpacked at once of a layer whose largest matrix has so many weights."""
    if packed is None or not products.unpacks(packed, rows):
        return 0
    if device.gpu_ops():
        return 2 * largest * itemsize
    return min(largest, products.TILE) * (4 if itemsize == 4 else 4 + itemsize)


def check_fits(needed: int, allowed: int) -> None:
    """Raises InputError if so many bytes are more than allowed."""
    if needed > allowed:
        raise InputError(f"this model needs {_told(needed)} of memory, more than the {_told(allowed)} allowed")


def _told(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
