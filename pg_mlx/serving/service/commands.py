"""Loading and unloading: one after another, on the thread that owns MLX, while no request is under way."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from ..error_codes import ServingError


class Commands:
    """Functions that wait for their turn. `changed` guards the queue, and is notified when it changes."""

    def __init__(self, changed: threading.Condition):
        self._changed = changed
        self._queue: deque[tuple[Callable[[], Any], Future[Any]]] = deque()

    def __bool__(self) -> bool:
        """Whether a command waits or runs."""
        return bool(self._queue)

    def add(self, work: Callable[[], Any]) -> Future[Any]:
        """Queue a function. The future gets its result, or its failure as a ServingError."""
        future: Future[Any] = Future()
        with self._changed:
            self._queue.append((work, future))
            self._changed.notify_all()
        return future

    def run_first(self, then: Callable[[], None]) -> None:
        """Call the first function on this thread, and `then` before anybody sees the result."""
        with self._changed:
            if not self._queue:  # `fail` was quicker
                return
            work, future = self._queue[0]
        result, failure = None, None
        try:
            result = work()
        except ServingError as error:
            failure = ServingError(error.code, str(error))  # without the traceback, which holds what was loaded
        except BaseException as error:  # a panic of Rust code is no Exception
            failure = ServingError("failed", f"unexpected failure: {type(error).__name__}: {error}")
        then()
        with self._changed:
            if not self._queue or self._queue[0][1] is not future:  # `fail` has ended it meanwhile
                return
            self._queue.popleft()
            self._changed.notify_all()
        if failure:
            future.set_exception(failure)
        else:
            future.set_result(result)

    def fail(self, code: str, message: str) -> None:
        """End all that wait or run with this error. A function that runs goes on, but nobody sees its result."""
        with self._changed:
            futures = [future for _, future in self._queue]
            self._queue.clear()
            self._changed.notify_all()
        for future in futures:
            future.set_exception(ServingError(code, message))
