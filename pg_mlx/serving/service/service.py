"""A model that many threads can use at the same time."""

from __future__ import annotations

import gc
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...checkpoint.load import LoadOptions
from ..error_codes import ServingError
from .commands import Commands
from .jobs import Job, Listener, seconds_left
from .limits import Limits
from .requests import Answered, Ask, Event, Failed, check, prepare
from .runner import ModelInfo, Runner, Stage

FAILURES = 2
"""So many requests in a row that fail even alone are not at fault; the model or the GPU is, and will stay so."""


class Service:
    """One thread owns MLX and the model; all methods here may be called from any other thread, and what they return
    or send (numbers, text, numpy arrays) belongs to the caller.

        with Service() as service:
            service.load(folder).result()
            for event in service.stream(Ask("caption en", [data])): ...

    Requests wait in a queue of bounded length, and enter the running batch as soon as there is a place and memory.
    Each gets the answer that it would get alone.
    """

    def __init__(self, limits: Limits | None = None, on_broken: Callable[[], None] = lambda: None):
        """on_broken: called once if the model fails whatever it is asked, from which only a new process recovers."""
        self.limits = limits or Limits()
        self._on_broken = on_broken
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[Job] = deque()
        self._commands = Commands(self._changed)
        self._runner: Runner | None = None  # touched by the owner only, but for its processor and info
        self._open, self._stopped, self._broken = True, False, False
        self._running = 0
        self._counts: Counter[str] = Counter()
        self._memory: dict[str, int] = {}
        self._measure()
        self._began = time.perf_counter()
        self._decoders = ThreadPoolExecutor(self.limits.decoders, "decoder")
        self._owner = threading.Thread(target=self._loop, name="mlx", daemon=True)
        self._owner.start()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the model ------------------------------------------------------------------------------------

    def load(
        self,
        path_or_repo: str | Path,
        options: LoadOptions | None = None,
        stage: Stage = lambda name, done, of: None,
    ) -> Future[ModelInfo]:
        """Load a model in place of the one there is, once all accepted requests are answered; until it is loaded, new
        ones are refused ("not_loaded"). stage is called on the owner's thread. Fails with ServingError: "bad_model",
        "out_of_memory", "failed"; no model is loaded then."""
        return self._command(lambda: self._load(path_or_repo, options or LoadOptions(), stage))

    def unload(self) -> Future[None]:
        """Free the model, once all accepted requests are answered. Without one it does nothing."""
        return self._command(self._unload)

    @property
    def model(self) -> ModelInfo | None:
        """What is loaded, if anything is."""
        runner = self._runner
        return runner.info if runner else None

    # --- requests -------------------------------------------------------------------------------------

    def submit(self, question: Ask, listener: Listener) -> Callable[[], None]:
        """Accept a request. The listener is called with its events, the last of which is Answered or Failed. Returns a
        function that cancels the request: it ends with Failed("cancelled") soon, unless it has ended before.

        Raises ServingError at once where it is refused: "not_loaded", "busy", "shutting_down", "too_large",
        "bad_request". Failed events have one of "bad_image", "bad_request", "too_large", "out_of_memory",
        "cancelled", "deadline", "failed", "shutting_down".
        """
        check(question, self.limits)
        job = Job(question, listener)
        with self._changed:
            if not self._open:
                raise ServingError("shutting_down", "the service takes up nothing new")
            if self._broken:
                raise ServingError("failed", "the model has failed and has to be started again")
            if self._runner is None or self._commands:
                raise ServingError("not_loaded", "no model is loaded, or one is just being loaded or unloaded")
            held = sum(waiting.held_bytes for waiting in self._waiting) + job.held_bytes
            if len(self._waiting) >= self.limits.queue or held > self.limits.waiting_bytes:
                self._counts["busy"] += 1
                raise ServingError("busy", f"{len(self._waiting)} requests are waiting; ask again later")
            self._waiting.append(job)
            self._decoders.submit(self._prepare, job, self._runner)
        return lambda: self._cancel(job)

    def stream(self, question: Ask) -> Iterator[Event]:
        """The events of a request. Closing the iterator cancels it. Raises as `submit`, when it is first read."""
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        cancel = self.submit(question, events.put)
        try:
            while not isinstance(event := events.get(), Answered | Failed):
                yield event
            yield event
        finally:
            cancel()

    def ask(self, question: Ask) -> Answered:
        """The whole answer. Raises ServingError where there is none."""
        *_, last = self.stream(question)
        if isinstance(last, Failed):
            raise ServingError(last.code, last.message)
        assert isinstance(last, Answered)
        return last

    # --- the whole ------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Figures as of the last step: JSON types only."""
        with self._lock:
            state = "broken" if self._broken else "shutting_down" if not self._open else None
            if state is None:
                state = "loading" if self._commands else "ready" if self._runner else "empty"
            return {
                "state": state,
                "running": self._running,
                "waiting": len(self._waiting),
                "answered": self._counts["done"],
                "failed": {code: n for code, n in sorted(self._counts.items()) if code != "done"},
                "uptime_s": time.perf_counter() - self._began,
                **self._memory,
            }

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests from now on, and wait until all accepted ones are answered: False if time was up."""
        with self._changed:
            self._open = False
            return self._changed.wait_for(lambda: not (self._waiting or self._running or self._commands), timeout)

    def close(self, timeout: float | None = None) -> None:
        """Drain, then end. What is not answered in time fails ("shutting_down")."""
        self.drain(timeout)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._decoders.shutdown(cancel_futures=True)
        self._owner.join()

    def _cancel(self, job: Job) -> None:
        job.cancelled = True
        self._notify()

    # --- the owner's thread ---------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._work():
                    self._changed.wait(seconds_left(self._waiting))
                if self._stopped:
                    break
                command = self._commands and not self._busy()
            if command:
                self._commands.run_first(then=self._measure)
            elif self._runner:
                self._advance(self._runner)
        self._end("shutting_down", "the service has ended")
        self._unload()

    def _work(self) -> bool:
        """Whether the owner thread has work. Also removes waiting jobs that were cancelled or have expired."""
        now = time.perf_counter()
        for job in list(self._waiting):
            if reason := job.expiry(now):
                job.finish(reason)
            if job.outcome:
                self._waiting.remove(job)
                self._count([job])
        ready = any(job.request for job in self._waiting)
        return self._stopped or ready or self._running > 0 or bool(self._commands and not self._busy())

    def _busy(self) -> bool:
        return bool(self._waiting or self._running)

    def _advance(self, runner: Runner) -> None:
        with self._lock:
            self._admit(runner)
        runner.drop_expired()
        ended = runner.step()
        with self._lock:
            self._running = len(runner.running)
            self._count(ended)
            self._broken = runner.failures >= FAILURES
            idle = not self._busy()
        if self._broken:
            self._end("failed", "the model has failed and has to be started again")
            self._on_broken()
        if idle:
            mx.clear_cache()
        self._measure()

    def _measure(self) -> None:
        """Note what MLX holds, the most that it has held since the process began, and the bytes of encoded pictures."""
        memory = {
            "active_bytes": mx.get_active_memory(),
            "peak_bytes": mx.get_peak_memory(),
            "feature_bytes": self._runner.feature_bytes if self._runner else 0,
        }
        with self._lock:
            self._memory = memory

    def _admit(self, runner: Runner) -> None:
        """Let jobs enter for which there is room, in the order in which they came. One whose pictures are still being
        decoded is overtaken; one that needs more room is not, or it might wait forever."""
        for job in [waiting for waiting in self._waiting if waiting.request]:
            if not runner.admits(job):
                break
            self._waiting.remove(job)
            try:
                runner.start(job)
            except Exception as error:
                job.fail_unexpectedly(error)
                self._count([job])
        self._running = len(runner.running)

    def _count(self, jobs: list[Job]) -> None:
        """Note how these jobs ended."""
        for job in jobs:
            self._counts[job.outcome or ""] += 1
        if jobs:
            self._changed.notify_all()

    def _end(self, code: str, message: str) -> None:
        """Fail everything."""
        with self._lock:
            jobs = [*self._waiting, *(self._runner.abandon() if self._runner else ())]
            for job in jobs:
                job.finish(Failed(code, message))
            self._waiting.clear()
            self._running = 0
            self._count(jobs)
            self._commands.fail(code, message)

    # --- commands -------------------------------------------------------------------------------------

    def _command(self, work: Callable[[], Any]) -> Future[Any]:
        with self._lock:
            if not self._open or self._broken:
                raise ServingError("shutting_down", "the service takes up nothing new")
            return self._commands.add(work)

    def _load(self, path_or_repo: str | Path, options: LoadOptions, stage: Stage) -> ModelInfo:
        self._unload()
        self._runner = Runner(path_or_repo, options, self.limits, stage)
        return self._runner.info

    def _unload(self) -> None:
        if self._runner:
            self._runner = None
            gc.collect()
            mx.clear_cache()

    def _prepare(self, job: Job, runner: Runner) -> None:
        question = job.question
        if job.outcome or question is None:
            return
        try:
            request = prepare(question, runner.processor, self.limits)
            runner.check(request)
        except ServingError as error:
            job.finish(Failed(error.code, str(error)))
        except Exception as error:
            job.fail_unexpectedly(error)
        else:
            job.prepared(request)
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
