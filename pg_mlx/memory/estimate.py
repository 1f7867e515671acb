"""How much memory a model takes beside its weights, computed from shapes alone.

`scratch_bytes` is what the widest layer of a pass computes. A command that answers about one picture adds the cache of
that answer (`pass_bytes`); a server counts the caches of all its answers itself.
"""

from __future__ import annotations

import mlx.core as mx

from ..config import PaliGemmaConfig
from ..errors import InputError
from ..ops import blocks, device, products
from ..quantization.modes import Quantization

PROMPT_TOKENS = 64
"""Tokens of the prompt that an estimate for one answer allows for."""

ANSWER_TOKENS = 256
"""Tokens of the answer that it allows for; the cache has room for as many from the beginning."""


def pass_bytes(
    config: PaliGemmaConfig, dtype: mx.Dtype, tower: Quantization | None, decoder: Quantization | None
) -> int:
    """The most that encoding one picture, reading it with a prompt or a step of the answer should hold beside the
    weights: keys and values, and what the widest part of a layer computes. tower, decoder: how their MLPs are packed.
    """
    patches = config.vision.num_patches
    tokens = patches + PROMPT_TOKENS
    cache = config.text.cache_bytes(dtype.size) * (tokens + ANSWER_TOKENS)
    prefix = _prefix_bytes(config, dtype.size, tokens, 1, decoder) + cache
    return _kernel_bytes(tower, decoder) + max(_vision_bytes(config, dtype.size, 1, tower), prefix)


def scratch_bytes(
    config: PaliGemmaConfig,
    dtype: mx.Dtype,
    pictures: int,
    tokens: int,
    rows: int,
    tower: Quantization | None,
    decoder: Quantization | None,
) -> int:
    """The most that encoding so many pictures at a time, or then reading prefixes of so many tokens together, should
    hold beside weights and caches: what the widest part of a layer computes, and the logits of `rows` rows.
    tower, decoder: how their MLPs are packed.
    """
    vision = _vision_bytes(config, dtype.size, pictures, tower)
    prefix = _prefix_bytes(config, dtype.size, tokens, rows, decoder)
    return _kernel_bytes(tower, decoder) + max(vision, prefix)


def _kernel_bytes(tower: Quantization | None, decoder: Quantization | None) -> int:
    """Tables of the CPU's products, which stay once they are made."""
    packings = {q for q in (tower, decoder) if q and not device.gpu_ops()}
    return sum(products.scratch_bytes(q) for q in packings)


def _vision_bytes(config: PaliGemmaConfig, itemsize: int, pictures: int, packed: Quantization | None) -> int:
    vision, patches = config.vision, pictures * config.vision.num_patches
    every_score = vision.num_attention_heads * patches * vision.num_patches  # no picture attends to another one
    scores = 0 if device.gpu_ops() else _copies(itemsize) * min(every_score, blocks.VALUES)
    attention = (8 * patches * vision.hidden_size + scores) * itemsize
    mlp = patches * vision.intermediate_size * (itemsize + _activation_bytes(itemsize))
    wide = 0 if itemsize == 4 else 4  # the residual stream's copy in float32
    residual = patches * vision.hidden_size * (2 * itemsize + wide)
    unpacked = _unpacked_bytes(packed, patches, vision.intermediate_size * vision.hidden_size, itemsize)
    return residual + max(attention, mlp) + unpacked


def _prefix_bytes(config: PaliGemmaConfig, itemsize: int, tokens: int, rows: int, packed: Quantization | None) -> int:
    """Without the cache. Scores are most if all tokens are one row's."""
    text = config.text
    scores = text.num_attention_heads * tokens**2
    attention = _copies(itemsize) * (scores if device.gpu_ops() else min(scores, blocks.VALUES)) * itemsize
    together = tokens if device.gpu_ops() else min(tokens, max(1, blocks.VALUES // (2 * text.intermediate_size)))
    mlp = together * text.intermediate_size * (2 * itemsize + _activation_bytes(itemsize))
    heads = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    residual = tokens * ((8 * text.hidden_size + 3 * heads) * itemsize + 2 * text.hidden_size * 4)
    unpacked = _unpacked_bytes(packed, tokens, 2 * text.intermediate_size * text.hidden_size, itemsize)
    return residual + max(attention, mlp) + unpacked + rows * 2 * 4 * text.vocab_size


def _copies(itemsize: int) -> int:
    """Copies of attention scores that there are at a time; NumPy computes in place."""
    return 1 if itemsize == 4 and not device.gpu_ops() else 2


def _activation_bytes(itemsize: int) -> int:
    """Bytes for each result of a GELU: the result, and in 16 bits on the CPU float32 on the way."""
    return 4 if itemsize == 4 or device.gpu_ops() else 16


def _unpacked_bytes(packed: Quantization | None, rows: int, largest: int, itemsize: int) -> int:
    """Bytes of what is unpacked at once of a layer whose largest matrix has so many weights."""
    if packed is None or not products.unpacks(packed, rows):
        return 0
    if device.gpu_ops():  # all matrices of two layers of the decoder: it waits for one layer while the next has begun
        return 4 * largest * itemsize
    return min(largest, products.TILE) * (4 if itemsize == 4 else 4 + itemsize)


def check_fits(needed: int, allowed: int) -> None:
    """Raises InputError if so many bytes are more than allowed."""
    if needed > allowed:
        raise InputError(f"this model needs {_readable(needed)} of memory, more than the {_readable(allowed)} allowed")


def _readable(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
