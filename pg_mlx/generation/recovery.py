"""One retry after a failed pass: each of its rows is answered again alone, so that only the row at fault fails.

Tokens that were already reported are not reported again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from .engine import Engine
from .next_tokens import Choice
from .request import Request
from .rows import Progress, Row


@dataclass
class _Reported:
    """What has been reported of one row."""

    count: int = 0
    """Tokens that the present attempt has made."""
    token_ids: list[int] = field(default_factory=list)
    """What earlier attempts have reported; the present one has to repeat it."""
    choices: list[Choice | None] = field(default_factory=list)
    """The choices at those tokens, if the request asks for them."""

    def new(self, token_ids: Sequence[int], ended: bool = False) -> Sequence[int]:
        """Those of the attempt's next tokens that were not reported yet. ended: they are its last ones. Raises
        RuntimeError if the attempt differs from what was reported."""
        known = self.token_ids[self.count : self.count + len(token_ids)]
        self.count += len(token_ids)
        if list(token_ids[: len(known)]) != known or (ended and self.count < len(self.token_ids)):
            raise RuntimeError("a second attempt did not repeat the first")
        return token_ids[len(known) :]

    def begin_again(self, row: Row) -> None:
        """The attempt has failed; another one follows."""
        if self.count > len(self.token_ids):
            self.token_ids, self.choices = row.token_ids[: self.count], row.choices[: self.count]
        self.count = 0


class Recovery:
    """An Engine that goes on after a pass has failed. It has the engine's methods, and a Row stays the same object.

    A failure in a pass of several rows, as of one that needs too much memory, hits all of them. A new engine then
    answers them again from their beginning, one at a time, in the order in which they were added, before any other.
    Only a row that fails alone is reported with its error. `step` raises nothing.
    """

    def __init__(self, new_engine: Callable[[], Engine]):
        self.failures = 0
        """How many rows have failed alone since the last one that got its answer. If there are several, the fault is
        not theirs but the model's or the GPU's."""
        self._new_engine = new_engine
        self._engine = new_engine()
        self._rows: dict[Row, _Reported] = {}
        """All rows that have not ended, in the order in which they were added."""
        self._waiting: deque[Row] = deque()
        """Those of them that wait for their second attempt."""
        self._retried: Row | None = None
        """The one whose second attempt is under way."""

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._rows)

    @property
    def free(self) -> int:
        """How many more requests the next step could take: none during second attempts."""
        return 0 if self._waiting or self._retried else self._engine.free

    def add(self, request: Request) -> Row:
        """As Engine.add, but only while `free` is above 0."""
        row = self._engine.add(request)
        self._rows[row] = _Reported()
        return row

    def expect(self, requests: Sequence[Request]) -> None:
        """As Engine.expect. Raises nothing: a picture that cannot be encoded fails when its row enters."""
        with suppress(Exception):
            self._engine.expect(requests)

    def step(self) -> list[Progress]:
        """As Engine.step, but a row that fails alone is reported with its error. A step may report nothing."""
        dropped = self._retry_next()
        try:
            progress = self._engine.step()
        except Exception as error:
            return dropped + self._after_failure(error)
        return dropped + [new for one in progress if (new := self._not_yet_reported(one))]

    def _retry_next(self) -> list[Progress]:
        """Begin the next second attempt, unless one is under way. Reports rows that were cancelled before that."""
        dropped = []
        while self._waiting and self._retried is None:
            row = self._waiting.popleft()
            if row.cancelled:
                row.finish_reason, row.finished_at = "cancelled", time.perf_counter()
                dropped.append(self._end(Progress(row, ())))
            else:
                self._engine.restart(row)
                self._retried = row
        return dropped

    def _after_failure(self, error: Exception) -> list[Progress]:
        """The engine is lost with all its rows. Reports the error if it had only one."""
        self._engine, self._retried = self._new_engine(), None
        lost = [row for row in self._rows if row not in self._waiting]
        if len(lost) == 1:
            self.failures += 1
            return [self._end(Progress(lost[0], (), error))]
        for row in lost:
            self._rows[row].begin_again(row)
        self._waiting = deque(self._rows)
        return []

    def _not_yet_reported(self, progress: Progress) -> Progress | None:
        """What is new in this progress, if anything is."""
        row, reported = progress.row, self._rows[progress.row]
        try:
            new = reported.new(progress.token_ids, row.finish_reason in ("stop", "length"))
        except RuntimeError as error:
            self._engine = self._new_engine()  # the row was alone in it
            return self._end(Progress(row, (), error))
        if row.finish_reason is not None:
            return self._end(Progress(row, new))
        return Progress(row, new) if new else None

    def _end(self, last: Progress) -> Progress:
        """Forget a row after its last progress."""
        row = last.row
        reported = self._rows.pop(row)
        if row is self._retried:
            self._retried = None
        if row.finish_reason == "cancelled" and reported.count < len(reported.token_ids):
            row.token_ids, row.choices = reported.token_ids, reported.choices
        if last.error is None and row.finish_reason != "cancelled":
            self.failures = 0
        return last
