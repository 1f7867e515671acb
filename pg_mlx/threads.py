"""Work beside the thread that owns MLX: files, pictures, text. What runs here neither makes nor touches MLX arrays.

These threads are daemons, so a stuck download never keeps a program from ending. But Python stops a daemon thread
wherever it is, and inside a C++ library (SentencePiece, MLX) that aborts the whole process. So no such thread is left
behind: `background` waits for its function before an error goes on, `finish_running` waits before Python shuts down,
and a command ends through `leave`.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Generic, NoReturn, TypeVar

R = TypeVar("R")

THREADS = min(4, os.cpu_count() or 1)
LOOK_AHEAD = 16
"""Pictures made ready before they are asked for: 0.6 MB each at 224 px, 10 MB at 896."""

END_S = 10.0
"""How long the end of a program waits for functions that are still running."""

_running: set[Future] = set()
"""What daemon threads of this module are executing. Adding and removing one future is atomic."""


def run_into(future: Future[R], function: Callable[[], R]) -> None:
    """Call the function here. The future gets its result or error, KeyboardInterrupt too; nothing is raised."""
    _running.add(future)
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
    finally:
        _running.discard(future)


def start(function: Callable[[], R]) -> Future[R]:
    """Call the function on a new daemon thread."""
    future: Future[R] = Future()
    threading.Thread(target=run_into, args=(future, function), daemon=True).start()
    return future


@contextmanager
def background(function: Callable[[], R]) -> Iterator[Future[R]]:
    """As `start`, and wait for the function at the end of the block, however the block ends."""
    future = start(function)
    try:
        yield future
    finally:
        wait([future])


def finish_running(timeout: float = END_S) -> bool:
    """Wait until no function of this module runs; False if some still do after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while _running and time.monotonic() < deadline:
        wait(list(_running), 0.05)  # a future is done a moment before it leaves the set
    return not _running


atexit.register(finish_running)


def leave(code: int) -> NoReturn:
    """End the process with this exit code, without the shutdown of the Python interpreter.

    The shutdown aborts if a thread is in C++ then. That includes threads which have ended for Python: MLX frees the
    compiled functions of a thread when the system ends it, and needs the interpreter for that. Functions that are
    registered with atexit are called, and stdout and stderr are flushed.
    """
    atexit.unregister(finish_running)  # nothing is waited for
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # closed, or none
            stream.flush()
    os._exit(code)


class Shared(Generic[R]):
    """A function whose result several threads need: the first thread calls it, the others wait for the result."""

    def __init__(self, function: Callable[[], R]):
        self._function = function
        self._lock = threading.Lock()
        self._value: tuple[R] | None = None

    def __call__(self) -> R:
        """The function's result. If the function raises, so does this call, and the next one tries again."""
        with self._lock:
            if self._value is None:
                self._value = (self._function(),)
            return self._value[0]


class Prefetch(Iterator[Future[R]]):
    """The results of functions as futures, in order. A future that is handed out may not be done yet.

    A few threads run up to `limit` functions ahead, so memory is bounded however many functions there are. `functions`
    is iterated by the thread that calls `next`.
    """

    def __init__(self, functions: Iterable[Callable[[], R]], *, threads: int = THREADS, limit: int = LOOK_AHEAD):
        self._functions = iter(functions)
        self._limit, self._left = limit, threads
        self._queued: SimpleQueue[tuple[Future[R], Callable[[], R]] | None] = SimpleQueue()
        self._pending: deque[Future[R]] = deque()
        self._started = 0
        self._fill()

    def __next__(self) -> Future[R]:
        if not self._pending:
            raise StopIteration
        first = self._pending.popleft()
        self._fill()
        return first

    @property
    def exhausted(self) -> bool:
        """Whether every result has been handed out."""
        return not self._pending

    @property
    def ready(self) -> bool:
        """Whether the next result is there already."""
        return bool(self._pending) and self._pending[0].done()

    def close(self) -> None:
        """Drop all functions that have not begun. Threads end after the function that they are running."""
        self._functions = iter(())
        self._pending.clear()
        while not self._queued.empty():
            try:
                self._queued.get_nowait()
            except Empty:  # a thread was quicker
                break
        for _ in range(self._started):
            self._queued.put(None)

    def _fill(self) -> None:
        while len(self._pending) < self._limit and (function := next(self._functions, None)) is not None:
            future: Future[R] = Future()
            self._pending.append(future)
            self._queued.put((future, function))
            if self._left:
                self._left -= 1
                self._started += 1
                threading.Thread(target=_work, args=(self._queued,), daemon=True).start()


def _work(queued: SimpleQueue[tuple[Future, Callable] | None]) -> None:
    while (item := queued.get()) is not None:
        run_into(*item)
        del item  # or a result would live until the next one
