"""(part of `parallel`) What each rank reads and holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx

from pg_mlx.checkpoint.load import LoadOptions, load_model
from pg_mlx.parallel.agreement import Agreed, LoadRequest
from pg_mlx.parallel.follower import Follower
from pg_mlx.parallel.leader import Leader
from pg_mlx.parallel.link import Command, Link

BEFORE = "from benchmarks.parallel_bytes import MeasuredFollower"
CAPACITY = 2000
OPTIONS = LoadOptions(dtype="float32", keep_quantized=True)


def what_is_held(link: Link, mode: str, shares: str, folder: str) -> None:
    """Print what rank 0 reads from disk and holds, and what five steps allocate beside that."""
    leader = MeasuredLeader(link, mode, tuple(map(int, shares.split(":"))))
    before = bytes_of_process()
    model = leader.load_model(Path(folder), OPTIONS)
    print(f"rank 0: {leader.line}; {(bytes_of_process() - before - leader.read) / 1e6:.1f} MB read beside", flush=True)
    features = mx.zeros((1, 8, model.config.text.hidden_size))
    logits, cache = model.prefill(features, mx.array([[2, 10, 20, 108]]), capacity=CAPACITY)
    more = 0
    for step in range(6):
        token = mx.argmax(logits, axis=-1)
        mx.eval(token)
        active, layer = mx.get_active_memory(), cache.layers[0].nbytes
        mx.reset_peak_memory()
        logits, cache = model.step(token, cache)
        mx.eval(logits, cache.layers)
        more = max(more, mx.get_peak_memory() - active) if step else 0
    steps_line("rank 0", more, layer)


class MeasuredLeader(Leader):
    """A leader that measures what reading its weights takes."""

    line, read = "", 0

    def _weights(self, *given: Any) -> Any:
        model, self.line, self.read = measured(lambda: super(MeasuredLeader, self)._weights(*given))
        return model


class MeasuredFollower(Follower):
    """A follower that prints the same."""

    _more, _layer, _steps = 0, 0, 0
    _line, _bytes = "", 0

    def _load(self, ask: LoadRequest) -> None:
        before = bytes_of_process()
        super()._load(ask)
        more = bytes_of_process() - before - self._bytes
        print(f"rank {self._link.rank}: {self._line}; {more / 1e6:.1f} MB read beside", flush=True)

    def _read(self, agreed: Agreed) -> Any:
        decoder, self._line, self._bytes = measured(lambda: super(MeasuredFollower, self)._read(agreed))
        return decoder

    def _obey(self, command: Command, values: list[int]) -> None:
        active = mx.get_active_memory()
        mx.reset_peak_memory()
        super()._obey(command, values)
        if command is Command.EXTEND:
            self._steps += 1
            self._more = max(self._more, mx.get_peak_memory() - active) if self._steps > 1 else 0
            self._layer = next(iter(self._caches.values())).layers[0].nbytes

    def run(self) -> None:
        super().run()
        steps_line(f"rank {self._link.rank}", self._more, self._layer)


def measured(work: Callable[[], Any]) -> tuple[Any, str, int]:
    """The result of reading weights, what that took in words, and the bytes that were read."""
    before = bytes_of_process()
    mx.reset_peak_memory()
    model = work()
    read, active, peak = bytes_of_process() - before, mx.get_active_memory(), mx.get_peak_memory()
    return model, f"reads {read / 1e6:.1f} MB of weights, holds {active / 1e6:.1f} MB, peak {peak / active:.3f}", read


def bytes_of_process() -> int:
    """Bytes that this process has read so far, from files or their cache."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])


def steps_line(who: str, more: int, layer: int) -> None:
    print(f"{who}: five steps allocate {more / 1e6:.2f} MB more; the cache of a layer takes {layer / 1e6:.2f} MB")


def alone(folder: str) -> None:
    """Print what one process reads and holds."""
    print(f"one process: {measured(lambda: load_model(folder, dtype='float32', keep_quantized=True))[1]}")
