"""The time of each stage of an answer, and the work that the stage needs at least."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from ..cache import KVCache
from ..paligemma import PaliGemma
from .machine import median_seconds
from .work import Work, decode_work, encode_work, prefill_work

ROWS = (1, 2, 4, 8, 16)
"""Batch sizes of the decode steps that are timed."""


@dataclass(frozen=True)
class MachineLimits:
    """The best that was measured on this machine: bytes copied (read and written) and floating-point operations a
    second."""

    copied_bytes: float
    flops: float


@dataclass(frozen=True)
class StageTime:
    """One stage: rows of its batch, median seconds, its work, and the tokens that it reads or makes."""

    name: str
    rows: int
    seconds: float
    work: Work
    tokens: int = 0

    def report(self, limits: MachineLimits) -> dict[str, Any]:
        """For JSON. The fractions are of the machine's own copy bandwidth and matrix product rate."""
        return {
            "stage": self.name,
            "rows": self.rows,
            "seconds": self.seconds,
            **asdict(self.work),
            "tokens_per_second": self.tokens / self.seconds if self.tokens else None,
            "of_copy_bandwidth": self.work.bytes / self.seconds / limits.copied_bytes,
            "of_matmul_rate": self.work.flops / self.seconds / limits.flops,
        }


def measure(
    model: PaliGemma,
    pixels: mx.array,
    prompt_ids: Sequence[int],
    *,
    rows: Sequence[int] = ROWS,
    repeats: int = 5,
    steps: int = 16,
    note: Callable[[str], None] = lambda _: None,
) -> Iterator[StageTime]:
    """Times vision, prefill, and decode with each number of rows.

    pixels [1, H, W, 3]. prompt_ids: ids of one prompt. repeats: runs of vision and prefill; steps: decode steps; the
    median counts. Every row continues the same prefix. note: called with the name of each stage before it begins.
    """
    note("vision")
    features = model.encode_image(pixels)
    mx.eval(features)
    yield StageTime("vision", 1, median_seconds(lambda: model.encode_image(pixels), repeats), encode_work(model))

    note("prefill")
    ids = mx.array([list(prompt_ids)])
    tokens = features.shape[1] + ids.shape[1]
    capacity = tokens + steps + 3

    def prefill() -> tuple[mx.array, KVCache]:
        logits, cache = model.prefill(features, ids, capacity=capacity)
        return mx.argmax(logits, axis=-1), cache

    def computed() -> Any:
        token, cache = prefill()
        return token, cache.layers

    yield StageTime("prefill", 1, median_seconds(computed, repeats), prefill_work(model, tokens), tokens)
    token, cache = prefill()
    mx.eval(token, cache.layers)
    for count in rows:
        note(f"decode, {count} rows" if count > 1 else "decode")
        mx.clear_cache()
        times = _decode(model, mx.repeat(token, count), cache.select([0] * count), steps)
        work = decode_work(model, [tokens + steps // 2] * count)
        yield StageTime("decode", count, statistics.median(times), work, count)


def _decode(model: PaliGemma, token: mx.array, cache: KVCache, steps: int) -> list[float]:
    """Seconds of each of `steps` steps, after two that are not counted. As in generation, a step is started before the
    token of the previous step is read."""
    mx.eval(token, cache.layers)
    times = []
    start = time.perf_counter()
    for _ in range(steps + 2):
        logits, cache = model.step(token, cache)
        following = mx.argmax(logits, axis=-1)
        mx.async_eval(following)
        token.tolist()
        token = following
        now = time.perf_counter()
        times.append(now - start)
        start = now
    token.tolist()
    return times[2:]
