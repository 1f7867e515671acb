"""One request on its way through a service."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from threading import Lock

from ...generation import Answer, Request, Row
from .requests import Answered, Ask, Event, Failed

Listener = Callable[[Event], None]
"""Called with each event, in order, on one of the service's threads. It must return at once, and call no service."""


class Job:
    """A request through its states: submitted -> prepared (`request` set) -> running (`answer` set) -> ended (exactly
    one Answered or Failed)."""

    def __init__(self, question: Ask, listener: Listener):
        self.question: Ask | None = question
        self.held_bytes = question.held_bytes
        """Bytes of the pictures that it keeps while it waits."""
        self.submitted_at = self.begun_at = time.perf_counter()
        self.deadline_at = None if question.deadline_s is None else self.submitted_at + question.deadline_s
        self.cancelled = False
        self.outcome: str | None = None
        """How it ended: "done" or the code of its failure."""
        self.request: Request | None = None
        self.answer: Answer | None = None
        self._listener = listener
        self._lock = Lock()

    @property
    def row(self) -> Row | None:
        """Its row in the engine, once it runs."""
        return self.answer.row if self.answer else None

    def prepared(self, request: Request) -> None:
        """It can enter a batch. The pictures as they came are not needed any more."""
        self.held_bytes = sum(picture.pixels.nbytes for picture in request.pictures)
        self.request, self.question = request, None

    def begin(self, answer: Answer) -> None:
        """It has entered a batch."""
        self.answer, self.begun_at = answer, time.perf_counter()

    def expiry(self, now: float) -> Failed | None:
        """Why it should end now, if it should. now: time.perf_counter()."""
        if self.cancelled:
            return Failed("cancelled", "the request was cancelled")
        if self.deadline_at is not None and now >= self.deadline_at:
            return Failed("deadline", "the request's time is over")
        return None

    def send(self, event: Event) -> None:
        """Give the listener an event, unless it has had the last one. An error of the listener is logged only."""
        if self.outcome:
            return
        try:
            self._listener(event)
        except Exception as error:  # not the service's fault, nor that of other requests
            print(f"pg_mlx: a listener failed: {type(error).__name__}: {error}", file=sys.stderr)

    def finish(self, event: Answered | Failed) -> None:
        """Send the last event, unless it was sent. May be called on any thread."""
        with self._lock:
            if self.outcome:
                return
            self.send(event)
            self.outcome = event.code if isinstance(event, Failed) else "done"

    def fail_unexpectedly(self, error: Exception) -> None:
        """End with "failed". The log has the details; the listener gets only the kind of error."""
        print(f"pg_mlx: a request failed: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        self.finish(Failed("failed", f"unexpected failure ({type(error).__name__})"))


def seconds_left(jobs: Iterable[Job]) -> float | None:
    """Seconds until the first deadline of these jobs; None if they have none."""
    ends = [job.deadline_at for job in jobs if job.deadline_at is not None]
    return min(max(0.0, min(ends) - time.perf_counter()), threading.TIMEOUT_MAX) if ends else None
