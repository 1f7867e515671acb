"""`pg-mlx worker --supervise`: a small process in front of a worker, which starts another one when the worker dies.

It passes lines and frames on, and reads types and ids only. When a worker dies, the requests in flight fail with
"worker_died", and the new worker gets the client's `hello` and the last `load` that succeeded. Loads no MLX.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from ...errors import InputError
from ..strict_json import BadJson
from .framing import (
    ANSWER_BYTES,
    LAST,
    LINE_BYTES,
    Incoming,
    LineTooLong,
    Message,
    frame_lengths,
    line_of,
    parse,
    write_all,
)
from .processes import end_with_parent
from .schemas import id_of

QUICK_S = 10.0
GIVE_UP = 3
"""After so many workers in a row that answered nothing, and died before they were ready or within QUICK_S seconds, no
other is started."""

_KEPT = ("hello", "load")
_Worker = subprocess.Popen[bytes]


class Supervisor:
    """Passes requests on until stdin ends, the client sends `shutdown`, or SIGTERM comes. Ends with its parent."""

    def __init__(self, incoming: int, outgoing: int, parent: int, command: Sequence[str]):
        """parent: the parent's process id, read as early as possible. command: what starts a worker."""
        self._in, self._out, self._parent, self._command = Incoming(incoming), outgoing, parent, command
        self._writing = threading.Lock()
        self._changed = threading.Condition()
        self._worker: _Worker | None = None
        self._ready = False
        """Whether the worker has had its `hello` and `load`: only then requests are passed on."""
        self._open: dict[str | int, list[Message]] = {}
        """Requests in flight by id; several if the client uses an id twice. Only `hello` and `load` are kept whole."""
        self._hello: Message | None = None
        self._load: Message | None = None
        self._ending = False

    def run(self) -> int:
        """Serve until the end. Returns the exit code: 0; 1 if it gave up, or the worker died while ending; 2 if that
        was the worker's."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        threading.Thread(target=end_with_parent, args=(self._parent,), name="parent", daemon=True).start()
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        failures = 0
        while True:
            lived = self._run_worker()
            code = self._fail_in_flight()
            if self._ending:
                return 0 if code in (0, -signal.SIGTERM) else 1
            if code == InputError.exit_code:
                return code
            failures = 0 if lived else failures + 1
            _note(f"the worker ended with {code}; " + ("giving up" if failures == GIVE_UP else "starting another"))
            if failures == GIVE_UP:
                return 1

    def _run_worker(self) -> bool:
        """Start a worker and pass on what it says until its stdout ends. Returns whether it answered anything, or was
        ready for QUICK_S seconds."""
        try:
            # In a group of its own: Ctrl-C in a terminal reaches this process only, which ends the worker once.
            self._worker = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        except OSError as error:
            _note(f"cannot start {self._command[0]}: {error.strerror}")
            return False
        if self._ending:  # said in between
            self._worker.terminate()
        assert self._worker.stdout is not None
        incoming = Incoming(self._worker.stdout.fileno(), limit=ANSWER_BYTES)
        answered, began = False, math.inf
        try:
            if not self._prepare(self._worker, incoming):
                return False
            with self._changed:
                self._ready = True
                self._changed.notify_all()
            began = time.monotonic()
            while (line := incoming.line()) is not None:
                answered |= self._note_answer(parse(line))
                self._write(line)
        except (BadJson, LineTooLong, KeyError, TypeError) as error:  # no type, or an id that is none
            _note(f"the worker does not keep to the protocol: {type(error).__name__}: {error}")
            self._worker.kill()
        return answered or time.monotonic() - began >= QUICK_S

    def _prepare(self, worker: _Worker, incoming: Incoming) -> bool:
        """Send the new worker the `hello` and `load` of the last one. False if it died."""
        for message in (self._hello, self._load):
            if message is None:
                continue
            assert worker.stdin is not None
            with contextlib.suppress(OSError):
                write_all(worker.stdin.fileno(), line_of({**message, "id": "supervisor"}))
            while (answer := incoming.message()) is not None and answer["type"] not in LAST:
                pass
            if answer is None:
                return False
            if answer["type"] == "error":
                _note(f"the new worker refuses to {message['type']}: {answer['message']}")
        return True

    def _fail_in_flight(self) -> int | None:
        """Send each request in flight its error. Returns the exit code of the worker; None if it never started."""
        code = None if self._worker is None else _exit_code(self._worker)
        with self._changed:
            self._ready, self._worker = False, None
            unanswered = [(name, request) for name, requests in self._open.items() for request in requests]
            self._open = {}
        self._ending |= any(request["type"] == "shutdown" for _, request in unanswered)
        for name, _ in unanswered:
            self._fail(name, "worker_died", f"the worker ended with code {code}")
        return code

    # --- from the client to the worker ----------------------------------------------------------------

    def _read(self) -> None:
        while True:
            try:
                line = self._in.line()
                if line is None:
                    break
                self._pass_on(parse(line), line)
            except LineTooLong:
                self._fail(None, "too_large", f"the line is longer than {LINE_BYTES} bytes")
            except BadJson as error:
                self._fail(None, "bad_json", str(error))
        self._ending = True
        worker = self._ready_worker()
        assert worker.stdin is not None
        worker.stdin.close()

    def _pass_on(self, message: Message, line: bytes) -> None:
        """Send the worker a line and the frames that follow it."""
        worker = self._ready_worker(message)
        assert worker.stdin is not None
        pieces = self._in.pieces(sum(frame_lengths(message)))
        try:
            write_all(worker.stdin.fileno(), line)
            for piece in pieces:
                write_all(worker.stdin.fileno(), piece)
        except OSError:  # it has died: `run` sees that, and the frames are skipped
            for _ in pieces:
                pass

    def _ready_worker(self, message: Message | None = None) -> _Worker:
        """The worker, once it is ready. The message, if there is one, is in flight from then on."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready)
            if message is not None and (name := id_of(message)) is not None:
                kept = message if message.get("type") in _KEPT else {"type": message.get("type")}
                self._open.setdefault(name, []).append(kept)
            assert self._worker is not None
            return self._worker

    # --- from the worker to the client ----------------------------------------------------------------

    def _note_answer(self, message: Message) -> bool:
        """Update the requests in flight. Returns whether this is the answer to one of them."""
        kind, name = message["type"], message["id"]
        with self._changed:
            requests = self._open.get(name, [])
            if kind not in LAST or not requests:
                return False
            request = requests.pop(-1 if kind == "error" else 0)  # the second one of an id is refused at once
            if not requests:
                del self._open[name]
        if kind == "hello":
            self._hello = request
        elif kind in ("loaded", "unloaded"):
            self._load = request if kind == "loaded" else None
        self._ending |= kind == "bye"
        return kind != "error"

    def _fail(self, name: str | int | None, code: str, message: str) -> None:
        self._write(line_of({"type": "error", "id": name, "code": code, "message": message}))

    def _write(self, line: bytes) -> None:
        try:
            with self._writing:
                write_all(self._out, line)
        except OSError:  # nobody reads any more
            self._end_now()

    # --- the end --------------------------------------------------------------------------------------

    def _on_signal(self, *_: object) -> None:
        if self._ending:  # the second one
            self._end_now()
        self._ending = True
        if self._worker is not None:
            self._worker.terminate()

    def _end_now(self) -> None:
        if self._worker is not None:
            self._worker.kill()
        os._exit(1)


def _exit_code(worker: _Worker) -> int:
    """The exit code of a worker whose stdout has ended. It is killed if it does not exit."""
    try:
        return worker.wait(timeout=5)
    except subprocess.TimeoutExpired:
        worker.kill()
        return worker.wait()


def _note(what: str) -> None:
    print(f"pg-mlx worker --supervise: {what}", file=sys.stderr, flush=True)
