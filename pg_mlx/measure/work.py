"""The work that a stage needs at least, counted from the shapes of a loaded model: arithmetic, and bytes read.

Arithmetic is that of the matrix products, two operations for each multiplication with its addition. Bytes are the
weights as they are stored, each once, and the keys and values in use. Activations are left out; they are a few per cent
of that while a product has few input rows. The module `decode_work` counts the graph of a step instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.nn as nn
from mlx.utils import tree_flatten

from ..linear import Embedding, Linear
from ..paligemma import PaliGemma


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes."""

    flops: int
    bytes: int


def encode_work(model: PaliGemma, pictures: int = 1) -> Work:
    """The work of vision tower and connector for so many pictures."""
    vision = model.config.vision
    patches = vision.num_patches
    products = 2 * patches * (cells(model.vision_tower) + cells(model.connector))
    attention = vision.num_hidden_layers * 4 * patches**2 * vision.hidden_size
    return Work(pictures * (products + attention), weight_bytes(model.vision_tower) + weight_bytes(model.connector))


def prefill_work(model: PaliGemma, tokens: int) -> Work:
    """The work of a prefix of `tokens` image and prompt tokens. The last layer computes queries, output projection and
    MLP for one token only, and so does the head."""
    text, language = model.config.text, model.language_model
    heads = text.num_attention_heads * text.head_dim
    layers = [cells(layer) for layer in language.layers]
    keys_and_values = 2 * text.num_key_value_heads * text.head_dim * text.hidden_size
    flops = sum(2 * tokens * layer + 4 * tokens**2 * heads for layer in layers[:-1])
    flops += 2 * tokens * keys_and_values + 2 * (layers[-1] - keys_and_values) + 4 * tokens * heads
    return Work(flops + 2 * cells(language.head_table), weight_bytes(language) + cache_bytes(model, [tokens]))


def decode_work(model: PaliGemma, lengths: Sequence[int]) -> Work:
    """The work of a step. lengths: tokens that each row has read."""
    text, language = model.config.text, model.language_model
    heads = text.num_attention_heads * text.head_dim
    attention = text.num_hidden_layers * 4 * heads * sum(length + 1 for length in lengths)
    used = sum(map(cells, language.layers)) + cells(language.head_table)
    flops = 2 * len(lengths) * used + attention
    return Work(flops, weight_bytes(language) + cache_bytes(model, lengths))


def cells(module: nn.Module) -> int:
    """Number of weights in a module's matrices; packed ones count as unpacked."""
    matrices = [part for _, part in module.named_modules() if isinstance(part, (Linear, Embedding))]
    return sum(matrix.num_outputs * matrix.num_columns for matrix in matrices)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of all parameters as they are stored."""
    return sum(array.nbytes for array in dict(tree_flatten(module.parameters())).values())


def cache_bytes(model: PaliGemma, lengths: Sequence[int]) -> int:
    """Bytes of the keys and values. lengths: tokens that each row has read."""
    return model.config.text.cache_bytes(model.dtype.size) * sum(lengths)
