"""With a GPU's operations a pass begins while the one before it is at work, and keys and values are not copied for it.

MLX copies the buffer of an array, to write into the copy, if a pass under way still reads it. On Metal that holds for
the passes of at most ten command buffers; MLX's CPU stream has the same rule for ten tasks of ten operations. So a
model of few operations shows here what a Mac does, and a copy shows in the peak of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
import pytest
from helpers.memory import growth
from helpers.models import config_json, model_of, random_tensors

from pg_mlx import PaliGemma, gemma
from pg_mlx.cache import CacheUpdate, KVCache
from pg_mlx.generation import Engine, Picture, Request, SamplingOptions
from pg_mlx.measure import graph
from pg_mlx.ops import device

pytestmark = pytest.mark.ops("gpu", reason="the CPU's operations begin nothing ahead")

KV_HEADS, WIDTH, CAPACITY, STEPS = 4, 64, 4000, 6


@pytest.fixture(autouse=True)
def nothing_is_collected() -> Iterator[None]:
    with growth():
        yield


class Copies:
    """Counts the blocks of code in which so many bytes were allocated beside those there were."""

    def __init__(self, size: int):
        self.size, self.count, self.blocks = size, 0, 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        yield
        self.blocks += 1
        self.count += mx.get_peak_memory() - before > 0.9 * self.size


def copies_of_a_loop(wait: bool) -> int:
    """A layer of slow work, a write and a reader, then a slow head. A pass is begun before the last token is read."""
    matrix, token = mx.random.normal((900, 900)) / 30, mx.zeros((1,))
    cache = KVCache((mx.zeros((2, 1, KV_HEADS, CAPACITY, WIDTH)),), (10,))
    mx.eval(matrix, token, cache.layers)
    copies = Copies(cache.layers[0].nbytes)

    def built(token: mx.array, cache: KVCache) -> tuple[mx.array, KVCache]:
        x = token + (matrix @ matrix)[0, :1] * 0
        new = CacheUpdate(cache, 1)
        layer = new.write(cache.layers[0], mx.ones((1, 1, 2 * KV_HEADS, WIDTH)) * x)
        keys, values = new.visible(layer, None)
        hidden = (mx.softmax((mx.ones((1, KV_HEADS, 1, WIDTH)) + x) @ keys.swapaxes(-1, -2), axis=-1) @ values).sum()
        return (matrix @ matrix)[0, :1] * 0 + hidden, KVCache((layer,), new.after, (hidden,))

    for _ in range(STEPS):
        before = cache.last_read
        following, cache = built(token, cache)
        if wait:
            mx.eval(before)
        with copies.watched():
            mx.async_eval(*cache.last_read, *cache.layers)
            mx.async_eval(following)
        token.tolist()
        token = following
    mx.synchronize()
    return copies.count


def test_a_loop_that_waits_for_the_last_read_copies_nothing() -> None:
    assert copies_of_a_loop(wait=True) == 0
    assert copies_of_a_loop(wait=False) >= 2, "it would show"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> PaliGemma:
    """One layer with large keys and values, and slow work before it reads them. Norms and rotations are one operation
    each, as on a GPU, but others: parts of them would fill the CPU's queue."""
    raw = config_json("gemma", dict(num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=8, head_dim=256))
    tiny = model_of(raw, random_tensors(raw))
    monkeypatch.setattr(mx.fast, "rms_norm", lambda x, weight, eps: x * weight)
    monkeypatch.setattr(mx.fast, "rope", lambda x, *arguments, **options: x * 0.5)
    plain, wide = gemma.Attention.attend, mx.random.normal((96, 20_000))
    mx.eval(wide)

    def attend(self: gemma.Attention, query: mx.array, *others: mx.array) -> mx.array:
        return plain(self, query + (wide @ wide.T)[0, 0] * 0, *others)

    monkeypatch.setattr(gemma.Attention, "attend", attend)
    return tiny


def copies_of_an_engine(model: PaliGemma, prompts: list[int], monkeypatch: pytest.MonkeyPatch) -> tuple[Copies, list]:
    """Copies in the steps of rows with so many prompt tokens, and the tokens of their answers."""
    engine = Engine(model, eos_id=-1, vocab_size=90, batch_size=len(prompts))
    picture = Picture(np.zeros((28, 28, 3), np.float32))
    rows = [
        engine.add(Request([picture], [2 + row] * count, SamplingOptions(max_tokens=200)))
        for row, count in enumerate(prompts)
    ]
    engine.step()
    copies, begin = Copies(engine._cache.layers[0].nbytes), engine._begin
    monkeypatch.setattr(engine, "_begin", copies.watched()(begin))
    for _ in range(2 * STEPS):
        engine.step()
    mx.synchronize()
    return copies, [row.token_ids for row in rows]


@pytest.mark.parametrize("prompts", [[9], [9, 9], [9, 5]], ids=["one row", "equal rows", "unequal rows"])
def test_an_engine_copies_nothing(model: PaliGemma, prompts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    copies, tokens = copies_of_an_engine(model, prompts, monkeypatch)
    assert (copies.count, copies.blocks) == (0, 2 * STEPS)
    with device.use("cpu"):  # which begins no pass ahead
        assert copies_of_an_engine(model, prompts, monkeypatch)[1] == tokens


def test_copies_of_an_engine_would_show(model: PaliGemma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "evaluate", lambda *arrays: True)  # no waiting
    copies = copies_of_an_engine(model, [9], monkeypatch)[0]
    assert copies.count > STEPS


def test_a_step_of_this_model_has_few_operations(model: PaliGemma) -> None:
    """Or MLX's CPU stream would not let a pass begin before the one before it is almost done."""
    logits, cache = model.prefill(mx.zeros((1, 4, 32)), mx.ones((1, 3), dtype=mx.int32), capacity=9)
    mx.eval(cache.layers)
    logits, after = model.step(mx.array([5]), cache)
    assert graph.kernels(logits, *after.layers).total() < 40
