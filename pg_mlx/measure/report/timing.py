"""Ways of doing one thing, timed in turn, so that a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

FASTER = 0.97
"""A way whose time is below this fraction of the usual one's is worth a setting."""

LEAST_ROUNDS, MOST_ROUNDS = 3, 60


@dataclass(frozen=True)
class Timing:
    """One way: median seconds, and median and quartiles of its time as a part of the first way's in the same round."""

    seconds: float
    ratio: float
    low: float
    high: float
    rounds: int

    @property
    def faster(self) -> bool:
        """Whether it is faster than the first way, and not only by chance."""
        return self.ratio < FASTER and self.high < 1

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare(ways: Mapping[str, Callable[[], float]], budget_s: float) -> dict[str, Timing]:
    """Time all ways in turn until `budget_s` seconds are over. A way returns its seconds; the first call of each is not
    counted, since it creates kernels."""
    stop = time.perf_counter() + budget_s
    for way in ways.values():
        way()
    rounds: list[list[float]] = []
    while len(rounds) < LEAST_ROUNDS or (time.perf_counter() < stop and len(rounds) < MOST_ROUNDS):
        rounds.append([way() for way in ways.values()])
    found = {}
    for index, name in enumerate(ways):
        ratios = [times[index] / times[0] for times in rounds]
        low, _, high = statistics.quantiles(ratios, n=4)
        seconds = statistics.median(times[index] for times in rounds)
        found[name] = Timing(seconds, statistics.median(ratios), low, high, len(rounds))
    return found


def chained(step: Callable[[mx.array], mx.array], x: mx.array, times: int) -> Callable[[], float]:
    """A way for `compare`: x = step(x) `times` times, computed at once, so that waiting does not hide a short step."""

    def way() -> float:
        start, y = time.perf_counter(), x
        for _ in range(times):
            y = step(y)
        mx.eval(y)
        return (time.perf_counter() - start) / times

    return way


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    """A way for `compare`: computes the arrays that `work` returns."""

    def way() -> float:
        start = time.perf_counter()
        mx.eval(work())
        return time.perf_counter() - start

    return way
