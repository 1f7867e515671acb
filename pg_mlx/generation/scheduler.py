"""Runs prepared requests through an engine in batches. An error is reported for its own request only."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from ..ops import device
from ..paligemma import PaliGemma
from ..processor import Processor
from ..threads import Prefetch
from .answer import Answer
from .engine import engine_for
from .recovery import Recovery
from .request import Request
from .results import Step
from .rows import Progress, Row

_PATIENCE_S = 0.05
"""How often `cancelled` is called while a picture is waited for."""


@dataclass(frozen=True)
class _Pending:
    """A request without its whole answer."""

    index: int
    request: Request


@dataclass
class Scheduler:
    """Iterate over it for (index, Step or error) of all requests. The last Step of each has its Generation.

    Every request ends with exactly one Generation or error. Each comes as soon as it is known: the error of a picture
    that is read ahead comes before the answers that are still under way.

    requests: in their order; the iteration closes them. At most batch_size are answered at a time. Which of them share
    a pass depends only on their answers, never on how fast they were made ready, so that a run can be repeated exactly
    in 16 bits, too. window: only so many requests, counted from the first one that has not ended, may have begun.
    cancelled: called between steps and while waiting. Once it returns True, what runs ends with finish_reason
    "cancelled", and nothing else begins.
    """

    model: PaliGemma
    processor: Processor
    requests: Prefetch[Request]
    batch_size: int
    window: int | None = None
    cancelled: Callable[[], bool] = lambda: False
    _running: dict[Row, tuple[int, Answer]] = field(default_factory=dict, init=False)
    _ready: deque[_Pending] = field(default_factory=deque, init=False)
    _coming: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[tuple[int, Step | Exception]]:
        engine = Recovery(partial(engine_for, self.model, self.processor, self.batch_size))
        with closing(self.requests):
            while self._running or self._ready or not self.requests.exhausted:
                if self.cancelled():
                    self._cancel()
                yield from self._take_up(engine)
                for progress in engine.step():
                    yield from self._steps(progress)

    def _cancel(self) -> None:
        self.requests.close()
        self._ready.clear()
        for row in self._running:
            row.cancel()

    def _take_up(self, engine: Recovery) -> Iterator[tuple[int, Exception]]:
        """Fill the free places of the batch, if there are enough of them to be worth a pass of their own. Otherwise a
        GPU encodes the pictures of the next requests, behind the pass that is under way."""
        enough = max(1, self.batch_size // 4)  # one pass over several prefixes takes less time than several passes
        if engine.free >= enough:
            yield from self._fetch(engine.free)
            while self._ready:
                yield from self._enter(engine, self._ready.popleft())
        elif device.gpu_ops() and not self._ready and (self.batch_size > 1 or self.requests.ready):
            # A batch of one shares no pass, so it does not wait for pictures that are not ready.
            yield from self._fetch(enough)
            engine.expect([pending.request for pending in self._ready])

    def _fetch(self, count: int) -> Iterator[tuple[int, Exception]]:
        """Wait until so many requests are ready, or all that are left and within the window. Yields the errors of those
        that cannot be made."""
        running = [index for index, _ in self._running.values()]
        first = min([*running, *(pending.index for pending in self._ready)], default=self._coming)
        while len(self._ready) < count and not self.requests.exhausted:
            if self.window is not None and self._coming >= first + self.window:
                return
            future, index = next(self.requests), self._coming
            self._coming += 1
            while wait([future], _PATIENCE_S).not_done:
                if self.cancelled():
                    return self._cancel()
            try:
                request = future.result()
            except Exception as error:
                yield index, error
                continue
            self._ready.append(_Pending(index, request))

    def _enter(self, engine: Recovery, pending: _Pending) -> Iterator[tuple[int, Exception]]:
        start = time.perf_counter() - pending.request.ready_s  # waiting for its turn does not count
        try:
            row = engine.add(pending.request)
        except Exception as error:
            yield pending.index, error
        else:
            self._running[row] = pending.index, Answer(row, self.model, self.processor, start)

    def _steps(self, progress: Progress) -> Iterator[tuple[int, Step | Exception]]:
        row = progress.row
        if row not in self._running:  # its answer has failed; the engine drops it with this step
            return
        index, answer = self._running[row]
        error = progress.error
        if error is None:
            try:
                for step in answer.push(progress.token_ids):
                    yield index, step
            except Exception as failure:
                error = failure
                row.cancel()
        if error is not None:
            yield index, error
        if error is not None or row.finish_reason is not None:
            del self._running[row]
