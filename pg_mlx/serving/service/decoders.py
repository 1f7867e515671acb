"""Threads that decode pictures and tokenize prompts, and what happens when a picture takes too long."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from ...generation import Request
from ..error_codes import ServingError
from .jobs import Job
from .limits import Limits
from .requests import Ask, Failed


class Decoders:
    """Makes jobs ready on a few daemon threads, in the order in which they came.

    Nothing can stop a decoder in the middle of a picture. A thread whose job has ended meanwhile (cancelled, past its
    deadline, or after `Limits.decode_s`) is stuck: another thread takes its place, up to `Limits.stuck` of them, and
    the stuck one ends when its picture does.
    """

    def __init__(self, limits: Limits, make_request: Callable[[Job, Ask], Request], on_change: Callable[[], None]):
        """make_request: decodes and tokenizes; raises ServingError. on_change: called when a job has changed."""
        self._limits, self._make_request, self._on_change = limits, make_request, on_change
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._decoding: set[Job] = set()
        self._threads = 0
        self._closed = False

    @property
    def stuck(self) -> int:
        """How many threads decode for a job that has ended."""
        with self._changed:
            return self._stuck()

    def refusal(self) -> str | None:
        """Why no more jobs are accepted, if so: so many threads are stuck that none is left."""
        blocked = self.stuck >= self._limits.decoders + self._limits.stuck
        return "pictures are being decoded that take too long" if blocked else None

    @property
    def held_bytes(self) -> int:
        """Bytes of the pictures of jobs that have ended, which a thread still holds."""
        with self._changed:
            return sum(job.held_bytes for job in self._decoding if job.outcome)

    def submit(self, job: Job) -> None:
        """Queue a job."""
        with self._changed:
            self._queue.append(job)
            self._fill()

    def tend(self) -> None:
        """Forget the queued jobs that have ended, and start a thread in place of each that is stuck."""
        with self._changed:
            self._queue = deque(job for job in self._queue if not job.outcome)
            self._fill()

    def close(self) -> None:
        """Forget all jobs. Threads end after the picture that they decode."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def _stuck(self) -> int:
        return sum(job.outcome is not None for job in self._decoding)

    def _wanted(self) -> int:
        return self._limits.decoders + min(self._stuck(), self._limits.stuck)

    def _fill(self) -> None:
        """Wake or start threads for what is queued."""
        idle = self._threads - len(self._decoding)
        for _ in range(min(len(self._queue) - idle, self._wanted() - self._threads)):
            self._threads += 1
            threading.Thread(target=self._work, name="decoder", daemon=True).start()
        self._changed.notify_all()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self._on_change()  # there is a new time by which it must be ready
            self._prepare(job)
            self._on_change()
            with self._changed:
                self._decoding.discard(job)
            del job  # or it would live until the next one

    def _prepare(self, job: Job) -> None:
        if (question := job.question) is None:
            return
        try:
            request = self._make_request(job, question)
        except ServingError as error:
            job.finish(Failed(error.code, str(error)))
        except BaseException as error:  # a panic of Rust code is no Exception
            job.fail_unexpectedly(error)
        else:
            job.prepared(request)

    def _next(self) -> Job | None:
        """The next job; None if this thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed or self._threads > self._wanted())
            if self._closed or self._threads > self._wanted():
                self._threads -= 1
                return None
            job = self._queue.popleft()
            job.decoding_until = time.perf_counter() + self._limits.decode_s
            self._decoding.add(job)
            return job
