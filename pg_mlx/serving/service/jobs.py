"""One request on its way through a service."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from math import inf
from threading import RLock

from ...generation import Answer, Request, Row
from ...ops.watchdog import explained
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
        self.decoding_until: float | None = None
        """When its pictures must be decoded, once they are being decoded."""
        self.cancelled = False
        self.outcome: str | None = None
        """How it ended: "done" or the code of its failure."""
        self.request: Request | None = None
        self.answer: Answer | None = None
        self._listener = listener
        self._lock = RLock()

    @property
    def row(self) -> Row | None:
        """Its row in the engine, once it runs."""
        return self.answer.row if self.answer else None

    def prepared(self, request: Request) -> None:
        """It can enter a batch, unless it has ended. The pictures as they came are not needed any more."""
        with self._lock:
            self.decoding_until = self.question = None
            if self.outcome is None:
                self.held_bytes = sum(picture.pixels.nbytes for picture in request.pictures)
                self.request = request

    def begin(self, answer: Answer) -> None:
        """It has entered a batch."""
        self.answer, self.begun_at = answer, time.perf_counter()

    def expiry(self, now: float) -> Failed | None:
        """Why it should end now, if it should. now: time.perf_counter()."""
        if self.cancelled:
            return Failed("cancelled", "the request was cancelled")
        if self.deadline_at is not None and now >= self.deadline_at:
            return Failed("deadline", "the request's time is over")
        if self.decoding_until is not None and now >= self.decoding_until:
            return Failed("too_large", "the pictures take too long to decode")
        return None

    @property
    def expires_at(self) -> float:
        """The earliest time.perf_counter() at which `expiry` may return something; infinite for none."""
        if self.outcome:
            return inf
        if self.cancelled:
            return -inf
        return min(at for at in (self.deadline_at, self.decoding_until, inf) if at is not None)

    def send(self, event: Event) -> None:
        """Give the listener an event, unless it has had the last one. An error of the listener is logged only."""
        with self._lock:
            if not self.outcome:
                self._deliver(event)

    def _deliver(self, event: Event) -> None:
        try:
            self._listener(event)
        except Exception as error:  # not the service's fault, nor that of other requests
            print(f"pg_mlx: a listener failed: {type(error).__name__}: {error}", file=sys.stderr)

    def finish(self, event: Answered | Failed) -> None:
        """Send the last event, unless it was sent. May be called on any thread."""
        with self._lock:
            if self.outcome:
                return
            self._deliver(event)
            self.outcome = event.code if isinstance(event, Failed) else "done"
            self.decoding_until = self.question = None

    def fail_unexpectedly(self, error: BaseException) -> None:
        """End with "failed". The log has the details; the listener gets only the kind of error."""
        print(f"pg_mlx: a request failed: {explained(error)}", file=sys.stderr)
        self.finish(Failed("failed", f"unexpected failure ({type(error).__name__})"))
