"""Which jobs wait, which run, and how the others have ended."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from math import inf

from .jobs import Job
from .limits import Limits
from .requests import Failed


class Ledger:
    """The jobs of a service. All callers hold `changed`, which is notified when jobs end."""

    def __init__(self, limits: Limits, changed: threading.Condition):
        self._limits, self._changed = limits, changed
        self.waiting: deque[Job] = deque()
        """Accepted and not begun, in the order in which they came."""
        self.running: list[Job] = []
        """In the batch. One that has ended meanwhile is here until the pass is over."""
        self.counts: Counter[str] = Counter()
        """How many ended, by outcome; "busy" are those that were refused."""

    @property
    def busy(self) -> bool:
        """Whether any job is not answered."""
        return bool(self.waiting or self.running)

    @property
    def ready(self) -> list[Job]:
        """Jobs that can enter a batch. One whose pictures are still being decoded is overtaken."""
        return [job for job in self.waiting if job.request and not job.outcome]

    def refusal(self, job: Job, held_bytes: int) -> str | None:
        """Why one more job is not accepted, if so. held_bytes: of pictures beside those of waiting jobs."""
        held = sum(waiting.held_bytes for waiting in self.waiting) + held_bytes + job.held_bytes
        if len(self.waiting) >= self._limits.queue or held > self._limits.waiting_bytes:
            return f"{len(self.waiting)} requests are waiting"
        return None

    def expire(self) -> None:
        """End the jobs that are cancelled or late. Those that wait are forgotten."""
        now = time.perf_counter()
        for job in [*self.waiting, *self.running]:
            if reason := job.expiry(now):
                job.finish(reason)
        self.forget([job for job in self.waiting if job.outcome])

    def forget(self, ended: Iterable[Job]) -> None:
        """Count these jobs, which have ended, unless that was done before."""
        ended = list(ended)
        for job in ended:
            if job in self.waiting:
                self.waiting.remove(job)
            elif job in self.running:
                self.running.remove(job)
            else:
                continue
            self.counts[job.outcome or ""] += 1
        if ended:
            self._changed.notify_all()

    def end_all(self, failed: Failed) -> None:
        """End every job with this failure."""
        jobs = [*self.waiting, *self.running]
        for job in jobs:
            job.finish(failed)
        self.forget(jobs)

    def seconds_left(self) -> float | None:
        """Seconds until a job may expire; None if none ever does."""
        first = min((job.expires_at for job in (*self.waiting, *self.running)), default=inf)
        return None if first == inf else min(max(0.0, first - time.perf_counter()), threading.TIMEOUT_MAX)
