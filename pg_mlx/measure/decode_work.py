"""The work of a decode step: the kernels it starts and the bytes it moves, counted as graph.py describes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx

from .. import gemma, residual
from ..cache import KVCache
from ..ops import attention, device, metal_kernels
from ..paligemma import PaliGemma
from . import graph, work

FUSED = [
    *((residual, name) for name in ("add", "add_weighted")),
    *((gemma, name) for name in ("cap_logits", "geglu", "scaled")),
    (attention, "cap_scores"),
]
"""Functions that mx.compile makes one operation of, as counting kernels shows."""


def decode_kernels(model: PaliGemma, lengths: Sequence[int] = (5,)) -> Counter[str]:
    """The kernels of one step, by the names of their operations. lengths: prompt tokens of each row."""
    with graph_of_a_gpu():
        return graph.kernels(*_step(model, lengths))


def kernels_per_layer(build: Callable[[int], PaliGemma], lengths: Sequence[int] = (5,)) -> Counter[str]:
    """The kernels that one more layer adds. build: makes a model with a given number of layers."""
    return decode_kernels(build(3), lengths) - decode_kernels(build(2), lengths)


def decode_bytes(model: PaliGemma, lengths: Sequence[int] = (5,)) -> int:
    """Bytes that one step reads and writes."""
    cache = _prefilled(model, lengths)

    def step(tokens: mx.array, *layers: mx.array) -> list[mx.array]:
        logits, after = model.step(tokens, KVCache(layers, cache.lengths))
        return [logits, *after.layers]

    with graph_of_a_gpu(*FUSED):
        return graph.moved_bytes(step, _tokens(len(lengths)), *cache.layers)


def least_decode_bytes(model: PaliGemma, lengths: Sequence[int] = (5,)) -> int:
    """Bytes that every step must read: the decoder's weights as they are stored, with the head, and the keys and values
    in use."""
    return work.decode_work(model, _prefilled(model, lengths).lengths).bytes


def _step(model: PaliGemma, lengths: Sequence[int]) -> list[mx.array]:
    logits, cache = model.step(_tokens(len(lengths)), _prefilled(model, lengths))
    return [logits, *cache.layers]


def _tokens(count: int) -> mx.array:
    tokens = mx.ones((count,), dtype=mx.int32)
    mx.eval(tokens)
    return tokens


def _prefilled(model: PaliGemma, lengths: Sequence[int]) -> KVCache:
    """A cache as prefill would leave it. Its contents are of no interest."""
    text = model.config.text
    used = tuple(model.config.vision.num_patches + length for length in lengths)
    shape = (2, len(lengths), text.num_key_value_heads, max(used) + 1, text.head_dim)
    layers = tuple(mx.zeros(shape, model.dtype) for _ in range(text.num_hidden_layers))
    mx.eval(layers)
    return KVCache(layers, used)


@contextmanager
def graph_of_a_gpu(*single: tuple[Any, str]) -> Iterator[None]:
    """Within, graphs are those of a GPU, and each function given as (owner, name) is one operation."""
    launch = metal_kernels.launch
    metal_kernels.launch = graph.one_kernel
    try:
        with device.use("gpu"), graph.single_operations(*single):
            yield
    finally:
        metal_kernels.launch = launch
