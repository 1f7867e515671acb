"""One request on its way through a service."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from threading import Lock

from ...generation import Request, Row
from ...generation.told import Told
from ...processor import TextStream
from ...regions import Region
from ...regions.reader import AnswerReader
from .requests import Answered, Ask, Event, Failed

Listener = Callable[[Event], None]
"""Is told each event, in order, on one of the service's threads. It must return at once, and call no service."""


class Job:
    """A request through its states: submitted -> prepared (`request` set) -> running (`row` set) -> ended (exactly one
    Answered or Failed)."""

    def __init__(self, question: Ask, listener: Listener):
        self.question: Ask | None = question
        self.held_bytes = question.held_bytes
        self.submitted_at = self.begun_at = time.perf_counter()
        self.deadline_at = None if question.deadline_s is None else self.submitted_at + question.deadline_s
        self.cancelled = False
        self.outcome: str | None = None
        """How it ended: "done" or the code of its failure."""
        self.alone = False
        """Tried again after its batch failed, without neighbours, to find whose fault it was."""
        self.request: Request | None = None
        self.row: Row | None = None
        self.text: TextStream | None = None
        self.reader: AnswerReader | None = None
        self.found: list[Region] = []
        self.told = Told()
        self._listener = listener
        self._lock = Lock()

    def prepared(self, request: Request) -> None:
        """The pictures as they came are not needed any more."""
        self.held_bytes = sum(picture.pixels.nbytes for picture in request.pictures)
        self.request, self.question = request, None

    def begin(self, row: Row, text: TextStream, reader: AnswerReader) -> None:
        self.row = row
        self.told.begin_again()
        if not self.told:  # or it goes on where the first attempt broke off
            self.text, self.reader, self.begun_at = text, reader, time.perf_counter()

    def overdue(self, now: float) -> Failed | None:
        """Why it should end now, if it should."""
        if self.cancelled:
            return Failed("cancelled", "the request was cancelled")
        if self.deadline_at is not None and now >= self.deadline_at:
            return Failed("deadline", "the request's time is over")
        return None

    def tell(self, event: Event) -> None:
        if self.outcome:
            return
        try:
            self._listener(event)
        except Exception as error:  # its asker's fault, and nobody else's
            print(f"pg_mlx: a listener failed: {type(error).__name__}: {error}", file=sys.stderr)

    def finish(self, event: Answered | Failed) -> None:
        """Tell the last event, unless one was told."""
        with self._lock:
            if self.outcome:
                return
            self.tell(event)
            self.outcome = event.code if isinstance(event, Failed) else "done"

    def break_off(self, error: Exception) -> None:
        """An unexpected failure; what exactly is for the log and not for the asker."""
        print(f"pg_mlx: a request failed: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        self.finish(Failed("failed", f"unexpected failure ({type(error).__name__})"))
