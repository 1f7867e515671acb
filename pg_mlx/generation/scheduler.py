"""Questions in, as threads make them ready; answers out as the engine gives them; a failure stays with its question."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import closing
from dataclasses import dataclass, field
from itertools import repeat

from ..ops import device
from ..paligemma import PaliGemma
from ..processor import Processor, TextStream
from ..threads import Prefetch
from .answer import generation_of
from .engine import Engine, engine_for
from .request import Request
from .results import Step
from .rows import Row
from .told import Told

_PATIENCE_S = 0.05
"""How often somebody who waits for a picture is asked whether to give up."""


@dataclass
class _Asked:
    index: int
    request: Request
    text: TextStream
    start: float = 0.0
    """time.perf_counter() when it entered, less what making it ready took: waiting for its turn does not count."""
    alone: bool = False
    told: Told = field(default_factory=Told)


@dataclass
class Flow:
    """Iterate over it for (index, Step or what went wrong) of all requests, each one's last Step with its Generation.

    requests: in their order; the iteration closes them. At most batch_size are answered at a time. Which of them share
    a pass depends on their answers only, never on how fast they were made ready, so that in 16 bits too a run can be
    repeated. window: so many requests, counted from the first one that is not done, may have begun.
    cancelled: asked between steps and while waiting; once it returns True, what runs ends with finish_reason
    "cancelled", and nothing else begins.

    A failure of the whole batch, as in a pass that needs too much memory, is followed by another attempt at each
    request alone, so that only those fail that fail alone.
    """

    model: PaliGemma
    processor: Processor
    requests: Prefetch[Request]
    batch_size: int
    window: int | None = None
    cancelled: Callable[[], bool] = lambda: False
    _running: dict[Row, _Asked] = field(default_factory=dict, init=False)
    _ready: deque[_Asked] = field(default_factory=deque, init=False)
    _once_more: deque[_Asked] = field(default_factory=deque, init=False)
    _coming: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[tuple[int, Step | Exception]]:
        engine = self._new_engine()
        with closing(self.requests):
            while self._running or self._ready or self._once_more or not self.requests.exhausted:
                if self.cancelled():
                    self._cancel()
                yield from self._take_up(engine)
                try:
                    progress = engine.step()
                except Exception as error:
                    engine = self._new_engine()
                    yield from self._broken(error)
                    continue
                for one in progress:
                    yield from self._tell(one.row, one.token_ids)

    def _new_engine(self) -> Engine:
        return engine_for(self.model, self.processor, self.batch_size)

    def _cancel(self) -> None:
        self.requests.close()
        self._ready.clear()
        self._once_more.clear()
        for row in self._running:
            row.cancel()

    def _take_up(self, engine: Engine) -> Iterator[tuple[int, Exception]]:
        """Fill the free places of the batch, once they are worth a pass of their own. Until then a GPU encodes the
        pictures of those who come next, behind the pass that is under way."""
        if self._once_more or any(asked.alone for asked in self._running.values()):
            if not self._running:
                yield from self._enter(engine, self._once_more.popleft())
            return
        enough = max(1, self.batch_size // 4)  # one pass over several prefixes takes less than several
        if engine.free >= enough:
            yield from self._fetch(engine.free)
            while self._ready:
                yield from self._enter(engine, self._ready.popleft())
        elif device.gpu_ops() and not self._ready and (self.batch_size > 1 or self.requests.ready):
            # alone, nothing is shared
            yield from self._fetch(enough)
            engine.expect([asked.request for asked in self._ready])

    def _fetch(self, count: int) -> Iterator[tuple[int, Exception]]:
        """See that as many requests are ready, as far as there are any and the window reaches."""
        first = min((asked.index for asked in (*self._running.values(), *self._ready)), default=self._coming)
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
            self._ready.append(_Asked(index, request, TextStream(self.processor.tokenizer)))

    def _enter(self, engine: Engine, asked: _Asked) -> Iterator[tuple[int, Exception]]:
        asked.start = time.perf_counter() - asked.request.ready_s
        try:
            self._running[engine.add(asked.request)] = asked
        except Exception as error:
            yield asked.index, error

    def _tell(self, row: Row, token_ids: Sequence[int]) -> Iterator[tuple[int, Step | Exception]]:
        asked = self._running.get(row)
        if asked is None:  # given up, and not yet gone
            return
        try:
            new = asked.told.new(token_ids)
        except RuntimeError as error:
            del self._running[row]
            row.cancel()
            yield asked.index, error
            return
        logprobs = row.logprobs[len(row.logprobs) - len(new) :] or repeat(None)
        for token_id, logprob in zip(new, logprobs, strict=False):
            yield asked.index, Step(asked.text.push(token_id), token_id, logprob=logprob)
        if row.finish_reason is None:
            return
        del self._running[row]
        try:
            generation = generation_of(row, self.model, self.processor, asked.start)
        except Exception as error:
            yield asked.index, error
        else:
            yield asked.index, Step(asked.text.flush(), generation=generation)

    def _broken(self, error: Exception) -> Iterator[tuple[int, Exception]]:
        """The engine is lost with all its rows."""
        lost = list(self._running.values())
        self._running.clear()
        if len(lost) == 1:
            yield lost[0].index, error
            return
        for asked in lost:
            asked.alone = True
            asked.told.begin_again()
        self._once_more.extend(lost)
