"""Work beside the thread that owns MLX: files, pictures, text. What runs here neither makes nor touches MLX arrays."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

R = TypeVar("R")

THREADS = min(4, os.cpu_count() or 1)
LOOK_AHEAD = 16
"""Pictures made ready before they are asked for: 0.6 MB each at 224 px, 10 MB at 896."""


class Outcome(Generic[R]):
    """What a function returned or raised, once somebody has run it."""

    def __init__(self, function: Callable[[], R]):
        self._function: Callable[[], R] | None = function
        self._done = threading.Event()
        self._value: R | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Called once. Errors are kept for `result`; only what ends programs passes through."""
        assert self._function is not None
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._function = None
            self._done.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is there, after at most this many seconds."""
        return self._done.wait(timeout)

    def result(self) -> R:
        """Waits for it. Raises what the function raised."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return cast(R, self._value)


def start(function: Callable[[], R]) -> Outcome[R]:
    """Runs it on a thread of its own, which does not keep the program from ending."""
    outcome = Outcome(function)
    threading.Thread(target=outcome.run, daemon=True).start()
    return outcome


class Once(Generic[R]):
    """A function whose result several threads need: the first one calls it, the others wait."""

    def __init__(self, function: Callable[[], R]):
        self._function = function
        self._lock = threading.Lock()
        self._value: tuple[R] | None = None

    def __call__(self) -> R:
        with self._lock:
            if self._value is None:
                self._value = (self._function(),)
            return self._value[0]


class Ahead(Iterator[Outcome[R]]):
    """The outcomes of functions, in their order, each perhaps not there yet.

    A few threads run up to `limit` functions before they are asked for, so memory is bounded however many there are.
    `functions` is iterated by the thread that asks.
    """

    def __init__(self, functions: Iterable[Callable[[], R]], *, threads: int = THREADS, limit: int = LOOK_AHEAD):
        self._functions = iter(functions)
        self._limit, self._left = limit, threads
        self._queued: SimpleQueue[Outcome[R] | None] = SimpleQueue()
        self._pending: deque[Outcome[R]] = deque()
        self._running: list[threading.Thread] = []
        self._fill()

    def __next__(self) -> Outcome[R]:
        if not self._pending:
            raise StopIteration
        first = self._pending.popleft()
        self._fill()
        return first

    @property
    def exhausted(self) -> bool:
        return not self._pending

    @property
    def ready(self) -> bool:
        """Whether the next outcome is there already."""
        return bool(self._pending) and self._pending[0].wait(0)

    def close(self) -> None:
        """What has not begun will not begin. Threads end with what they are at."""
        self._functions = iter(())
        self._pending.clear()
        while not self._queued.empty():
            try:
                self._queued.get_nowait()
            except Empty:  # a thread was quicker
                break
        for _ in self._running:
            self._queued.put(None)

    def _fill(self) -> None:
        while len(self._pending) < self._limit and (function := next(self._functions, None)) is not None:
            outcome = Outcome(function)
            self._pending.append(outcome)
            self._queued.put(outcome)
            if self._left:
                self._left -= 1
                self._running.append(threading.Thread(target=_work, args=(self._queued,), daemon=True))
                self._running[-1].start()


def _work(queued: SimpleQueue[Outcome[R] | None]) -> None:
    while (outcome := queued.get()) is not None:
        outcome.run()
