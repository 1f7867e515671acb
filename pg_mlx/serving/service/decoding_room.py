"""Memory for pictures while they are decoded, out of the same limit as that for answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..error_codes import ServingError
from .jobs import Job
from .ledger import Ledger
from .runner import Runner


class DecodingRoom:
    """Pictures wait here until there is memory to decode them. Those who are ready for a batch go first, so nobody
    waits forever: an answer that runs ends, and so does a picture that is being decoded."""

    def __init__(self, changed: threading.Condition, decode_s: float):
        """changed: the service's; notified when memory may have become free. decode_s: as Limits.decode_s."""
        self._changed, self._decode_s = changed, decode_s
        self.taken = 0
        """Bytes that pictures take now."""

    @contextmanager
    def reserve(self, runner: Runner, jobs: Ledger, job: Job, size: int) -> Iterator[None]:
        """Wait until the runner leaves so many bytes, beside what the next ready job needs, and hold them during the
        block. The job's time for decoding begins after that. Raises ServingError if the job has ended meanwhile, or if
        there can never be enough."""
        if runner.room_bytes is None:
            yield
            return
        if size > runner.room_bytes:
            raise ServingError("out_of_memory", f"decoding a picture may need {size} bytes of memory; make it smaller")

        def fits() -> bool:
            return self.taken + size <= runner.left_bytes(next(iter(jobs.ready), None))

        with self._changed:
            job.decoding_until = None
            self._changed.wait_for(lambda: job.outcome or fits())
            if job.outcome:
                raise ServingError("cancelled", "the request has ended")
            job.decoding_until = time.perf_counter() + self._decode_s
            self.taken += size
            self._changed.notify_all()  # there is a new time by which it must be ready
        try:
            yield
        finally:
            with self._changed:
                self.taken -= size
                self._changed.notify_all()
