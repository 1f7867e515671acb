"""A model that many threads can use at the same time."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...checkpoint.load import LoadOptions
from ...generation import Request
from ...memory.residency import release
from ...ops.watchdog import explained
from ..error_codes import ServingError
from .commands import Commands
from .decoders import Decoders
from .decoding_room import DecodingRoom
from .jobs import Job, Listener
from .ledger import Ledger
from .limits import Limits
from .requests import Answered, Ask, Event, Failed, check, prepare
from .runner import ModelInfo, Runner, Stage

FAILURES = 2
"""So many requests in a row that fail even alone are not at fault; the model or the GPU is, and will stay so."""

END_S = 1.0
"""How long an impatient `close` waits for a pass or a load, which nothing can interrupt."""


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
        self._jobs = Ledger(self.limits, self._changed)
        self._commands = Commands(self._changed)
        self._runner: Runner | None = None  # touched by the owner only, but for its processor and info
        self._open, self._stopped, self._broken = True, False, False
        self._memory: dict[str, int] = {}
        self._measure()
        self._began = time.perf_counter()
        self._decoding = DecodingRoom(self._changed, self.limits.decode_s)
        self._decoders = Decoders(self.limits, self._make_request, self._notify)
        self._owner = threading.Thread(target=self._own, name="mlx", daemon=True)
        self._owner.start()
        threading.Thread(target=self._watch, name="deadlines", daemon=True).start()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
            if refused := self._decoders.refusal() or self._jobs.refusal(job, self._decoders.held_bytes):
                self._jobs.counts["busy"] += 1
                raise ServingError("busy", f"{refused}; ask again later")
            self._jobs.waiting.append(job)
            self._decoders.submit(job)
            self._changed.notify_all()  # its deadline may be the first

        def cancel() -> None:
            job.cancelled = True
            self._notify()

        return cancel

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

    def stats(self) -> dict[str, Any]:
        """Figures as of the last step: JSON types only."""
        with self._lock:
            state = "broken" if self._broken else "shutting_down" if not self._open else None
            if state is None:
                state = "loading" if self._commands else "ready" if self._runner else "empty"
            jobs, counts = self._jobs, self._jobs.counts
            return {
                "state": state,
                "running": len(jobs.running),
                "waiting": len(jobs.waiting),
                "answered": counts["done"],
                "failed": {code: n for code, n in sorted(counts.items()) if code != "done"},
                "uptime_s": time.perf_counter() - self._began,
                **self._memory,
            }

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests from now on, and wait until all accepted ones are answered: False if time was up. Loading
        is not waited for: it fails ("shutting_down"), since nobody could ask that model."""
        self._open = False
        self._commands.fail("shutting_down", "the service takes up nothing new")
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs.busy, timeout)

    def abandon(self) -> None:
        """Fail everything that is not answered ("shutting_down"), and refuse the rest. Returns at once."""
        with self._changed:
            self._open, self._stopped = False, True
            self._changed.notify_all()
        self._end("shutting_down", "the service has ended")

    def close(self, timeout: float | None = None) -> None:
        """Drain, then end. What is not answered in time fails ("shutting_down"). A load or a pass may outlive it."""
        loading = bool(self._commands)
        patient = self.drain(timeout) and not loading
        self.abandon()
        self._decoders.close()
        self._owner.join(None if patient else END_S)

    # --- the owner's thread ---------------------------------------------------------------------------

    def _own(self) -> None:
        """What the owner does, up to the end. Whatever happens to it, everybody is answered."""
        try:
            self._loop()
        except BaseException as error:  # a panic of Rust code is no Exception
            print(f"pg_mlx: the model's thread failed: {explained(error)}", file=sys.stderr)
            self._give_up()

    def _loop(self) -> None:
        while True:
            with self._changed:
                jobs = self._jobs
                while not (self._stopped or jobs.running or jobs.ready or (self._commands and not jobs.busy)):
                    self._changed.wait()
                if self._stopped:
                    break
                command = self._commands and not jobs.busy
            if command:
                self._commands.run_first(then=self._measure)
            elif self._runner:
                self._advance(self._runner)
        self._end("shutting_down", "the service has ended")
        self._unload()

    def _advance(self, runner: Runner) -> None:
        with self._lock:
            self._admit(runner)
        runner.drop_expired()
        ended = runner.step()
        with self._lock:
            self._jobs.forget(ended)
            broken = runner.lost or runner.failures >= FAILURES
            idle = not self._jobs.busy
        if broken:
            self._give_up()
        if idle:
            mx.clear_cache()
        self._measure()

    def _measure(self) -> None:
        """Note what MLX holds and has held at most, and the bytes of encoded pictures."""
        memory = {
            "active_bytes": mx.get_active_memory(),
            "peak_bytes": mx.get_peak_memory(),
            "feature_bytes": self._runner.feature_bytes if self._runner else 0,
        }
        self._memory = memory

    def _admit(self, runner: Runner) -> None:
        """Let jobs enter for which there is room, in the order in which they came. One that needs more room than there
        is waits, and so do those behind it, or it might wait forever."""
        for job in self._jobs.ready:
            if not runner.admits(job, self._decoding.taken):
                break
            try:
                runner.start(job)
            except Exception as error:
                job.fail_unexpectedly(error)
                self._jobs.forget([job])
            else:
                self._jobs.waiting.remove(job)
                self._jobs.running.append(job)

    def _give_up(self) -> None:
        """The model will answer nothing any more."""
        with self._lock:
            self._broken = True
        self._end("failed", "the model has failed and has to be started again")
        self._on_broken()

    def _end(self, code: str, message: str) -> None:
        """Fail everything."""
        with self._lock:
            self._jobs.end_all(Failed(code, message))
            self._decoders.tend()
        self._commands.fail(code, message)

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
        self._runner = None
        release()

    def _watch(self) -> None:
        """End what is cancelled or late, whatever the owner and the decoders are doing."""
        with self._changed:
            while not self._stopped:
                self._jobs.expire()
                self._decoders.tend()
                self._changed.wait(self._jobs.seconds_left())

    def _make_request(self, job: Job, question: Ask) -> Request:
        """Decode and tokenize, on a decoder's thread. Raises ServingError."""
        runner = self._runner
        assert runner is not None  # while a job waits, no model is unloaded
        reserve = partial(self._decoding.reserve, runner, self._jobs, job)
        request = prepare(question, runner.processor, self.limits, reserve)
        if question.shorten:
            request = runner.shortened(request)
        runner.check(request)
        return request

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()
