"""`pg-mlx worker`: a service behind stdin and stdout. docs/protocol.md describes the protocol."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from msgspec import UNSET

from ... import __version__
from ...checkpoint.load import LoadOptions
from ...demo import CHECKPOINT
from ...errors import InputError
from ...generation import SamplingOptions
from ..error_codes import ServingError
from ..service.limits import Limits
from ..service.requests import Answered, Ask, Event, Failed, Text
from ..service.runner import ModelInfo
from ..service.service import Service
from ..strict_json import BadJson
from ..structs import Invalid, given
from . import schemas
from .framing import LINE_BYTES, VERSION, Incoming, LineTooLong, Message, Outgoing, frame_lengths
from .messages import Id, done_message, partial_message
from .pictures import read_picture
from .processes import end_with_parent

DRAIN_S, LAST_ERRORS_S = 30.0, 1.0
"""After a signal: seconds for the last answers, and then for the errors of what is left."""

_SAMPLING = tuple(field.name for field in fields(SamplingOptions))
_ASKING = ("logprobs", "deadline_s", "constrain", "max_regions")
_LOADING = ("dtype", "adapter_path", "revision", "max_memory", "memory", "layers_at_once", "mask_decoder", "tokenizer")
_LIMITS = ("batch_size", "queue", "pictures", "picture_bytes", "prompt_characters", "prefix_tokens")


class Worker:
    """Reads requests until stdin ends, the client sends `shutdown`, or SIGTERM comes; then finishes the accepted ones.
    Its process ends with its parent."""

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        parent: int,
        limits: Limits,
        folders: list[Path] | None = None,
        loading: LoadOptions | None = None,
        model: str | Path = CHECKPOINT,
    ):
        """parent: the parent's process id, read as early as possible. folders: pictures are read from these only; None
        for any. loading, model: what a `load` message means by the fields that it leaves out."""
        self._parent = parent
        self._in = Incoming(incoming)
        self._out = Outgoing(outgoing, on_closed=lambda: os._exit(1))
        self._limits, self._folders = limits, folders and [folder.resolve() for folder in folders]
        self._loading, self._model = loading or LoadOptions(), model
        self._service = Service(limits, on_broken=lambda: self._end(1))
        self._greeted = False
        self._lock = threading.Lock()
        self._open: dict[Id, Callable[[], None] | None] = {}
        """Requests not answered yet; those that can be cancelled with the function that does it."""
        self._over, self._signalled = threading.Event(), threading.Event()
        self._code = 0
        self._shutdown_id: Id | None = None
        """The id of the `shutdown` message, which is answered last."""
        self._commands: dict[type, Callable[[Any, Id, list[bytes]], None]] = {
            schemas.ClientHello: self._hello,
            schemas.ClientLoad: self._load,
            schemas.ClientGenerate: self._generate,
            schemas.ClientCancel: self._cancel,
            schemas.ClientStats: self._stats,
            schemas.ClientUnload: self._unload,
            schemas.ClientShutdown: self._shutdown,
        }

    def run(self) -> int:
        """Serve until the end. Returns the exit code: 0, or 1 if the model failed and a new process is needed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        threading.Thread(target=end_with_parent, args=(self._parent,), name="parent", daemon=True).start()
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self._over.wait()
        threading.Thread(target=self._end_late, name="drain", daemon=True).start()
        self._service.close()
        if self._shutdown_id is not None:
            self._send(schemas.WorkerBye(self._shutdown_id))
        self._out.close()
        return self._code

    def _end_late(self) -> None:
        """After a signal: end even if the last answers take too long, or nobody reads them."""
        self._signalled.wait()
        time.sleep(DRAIN_S)
        self._service.abandon()
        time.sleep(LAST_ERRORS_S)
        os._exit(1)

    def _end(self, code: int) -> None:
        self._code = self._code or code
        self._over.set()

    def _on_signal(self, *_: object) -> None:
        if self._signalled.is_set():  # the second one
            os._exit(1)
        self._signalled.set()
        self._end(0)

    # --- requests -------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while self._read_one():
                self._out.wait()
        except BaseException as error:  # a panic of Rust code is no Exception
            print(f"pg-mlx worker: reading failed: {type(error).__name__}: {error}", file=sys.stderr)
            self._end(1)
        self._end(0)

    def _read_one(self) -> bool:
        """False at the end of stdin."""
        try:
            message = self._in.message()
        except LineTooLong:
            self._fail(None, "too_large", f"the line is longer than {LINE_BYTES} bytes")
            return True
        except BadJson as error:
            self._fail(None, "bad_json", str(error))
            return True
        if message is None:
            return False
        request_id = schemas.id_of(message)
        frames = self._frames(message, request_id)
        if frames is None:
            return False
        if frames == [] and frame_lengths(message):
            return True  # refused, and the frames were skipped
        try:
            command = schemas.read(message)
        except Invalid as invalid:
            self._fail(request_id, "bad_request", str(invalid))
        else:
            self._run_command(command, frames)
        return True

    def _frames(self, message: Message, request_id: Id | None) -> list[bytes] | None:
        """The frames that follow a line; empty if they are too large, None if stdin ends first. Both are reported."""
        lengths = frame_lengths(message)
        limits = self._limits
        largest = max(lengths, default=0)
        if len(lengths) > limits.pictures or largest > limits.picture_bytes or sum(lengths) > limits.waiting_bytes:
            most = f"{limits.pictures} pictures of {limits.picture_bytes} bytes"
            self._fail(request_id, "too_large", f"a request has up to {most}, {limits.waiting_bytes} in all")
            return [] if self._in.skip(sum(lengths)) else None
        frames = []
        for length in lengths:
            frame = self._in.frame(length)
            if frame is None:
                self._fail(request_id, "bad_request", f"stdin ended in a frame of {length} bytes")
                return None
            frames.append(frame)
        return frames

    def _run_command(self, command: schemas.Client, frames: list[bytes]) -> None:
        request_id = command.id
        if not self._greeted and not isinstance(command, schemas.ClientHello):
            self._fail(request_id, "hello_first", "say hello first")
            return
        with self._lock:
            if request_id in self._open:
                self._fail(request_id, "duplicate_id", "a request with this id is not answered yet")
                return
            self._open[request_id] = None
        try:
            self._commands[type(command)](command, request_id, frames)
        except ServingError as error:
            self._answer_error(request_id, error.code, str(error))
        except InputError as error:
            self._answer_error(request_id, "bad_request", str(error))
        except Exception as error:
            print(f"pg-mlx worker: {type(command).__name__} failed: {type(error).__name__}: {error}", file=sys.stderr)
            self._answer_error(request_id, "failed", f"unexpected failure ({type(error).__name__})")

    def _hello(self, message: schemas.ClientHello, request_id: Id, _: list[bytes]) -> None:
        if VERSION not in message.protocols:
            raise ServingError("unsupported_protocol", f"only version {VERSION} is spoken here")
        self._greeted = True
        limits = schemas.Limits(LINE_BYTES, **{name: getattr(self._limits, name) for name in _LIMITS})
        commands = ["hello", "load", "generate", "cancel", "stats", "unload", "shutdown"]
        capabilities = schemas.Capabilities(commands, ["path", "base64", "bytes"], limits)
        self._answer(schemas.WorkerHello(request_id, VERSION, __version__, capabilities))

    def _load(self, message: schemas.ClientLoad, request_id: Id, _: list[bytes]) -> None:
        model = self._model if message.model is UNSET else message.model
        try:
            options = loading(message, self._loading)
        except InputError as error:
            raise ServingError("bad_model", str(error)) from None

        def stage(name: Any, done: int, of: int) -> None:
            if request_id in self._open:  # or it was given up, at the end
                self._send(schemas.WorkerProgress(request_id, name, done, of))

        def loaded(info: ModelInfo) -> schemas.Worker:
            return schemas.WorkerLoaded(request_id, _model(info))

        self._later(self._service.load(model, options, stage), request_id, loaded)

    def _unload(self, _: schemas.ClientUnload, request_id: Id, __: list[bytes]) -> None:
        self._later(self._service.unload(), request_id, lambda _: schemas.WorkerUnloaded(request_id))

    def _later(self, future: Future[Any], request_id: Id, answer: Callable[[Any], schemas.Worker]) -> None:
        def on_done(done: Future[Any]) -> None:
            error = done.exception()
            if isinstance(error, ServingError):
                self._answer_error(request_id, error.code, str(error))
            else:
                self._answer(answer(done.result()))

        future.add_done_callback(on_done)

    def _generate(self, message: schemas.ClientGenerate, request_id: Id, frames: list[bytes]) -> None:
        following = iter(frames)
        images = [read_picture(picture, following, self._folders) for picture in message.images]
        options = SamplingOptions(**given(message, *_SAMPLING))
        question = Ask(message.prompt, images, options, **given(message, *_ASKING))

        def listen(event: Event) -> None:
            if isinstance(event, Failed):
                self._answer_error(request_id, event.code, event.message)
            elif isinstance(event, Answered):
                self._close(request_id)
                self._out.send(lambda: done_message(request_id, event))
            elif message.stream and not (isinstance(event, Text) and not event.text):
                self._out.send(lambda: partial_message(request_id, event))

        cancel = self._service.submit(question, listen)
        with self._lock:
            if request_id in self._open:
                self._open[request_id] = cancel

    def _cancel(self, message: schemas.ClientCancel, request_id: Id, _: list[bytes]) -> None:
        with self._lock:
            cancel = self._open.get(message.request)
        if cancel:
            cancel()
        self._answer(schemas.WorkerCancelled(request_id, cancel is not None))

    def _stats(self, _: schemas.ClientStats, request_id: Id, __: list[bytes]) -> None:
        model = self._service.model
        loaded = None if model is None else _model(model)
        self._answer(schemas.WorkerStats(request_id, **self._service.stats(), model=loaded))

    def _shutdown(self, _: schemas.ClientShutdown, request_id: Id, __: list[bytes]) -> None:
        if self._shutdown_id is not None:
            raise ServingError("shutting_down", "shutdown was said before")
        self._shutdown_id = request_id
        self._end(0)

    # --- answers --------------------------------------------------------------------------------------

    def _send(self, message: schemas.Worker) -> None:
        self._out.send(schemas.plain(message))

    def _answer(self, message: schemas.Worker) -> None:
        """The last message of a request."""
        if message.id is not None:
            self._close(message.id)
        self._send(message)

    def _answer_error(self, request_id: Id, code: str, message: str) -> None:
        self._answer(schemas.WorkerError(request_id, code, message))

    def _fail(self, request_id: Id | None, code: str, message: str) -> None:
        self._send(schemas.WorkerError(request_id, code, message))

    def _close(self, request_id: Id) -> None:
        """The id may be used again."""
        with self._lock:
            self._open.pop(request_id, None)


def loading(message: schemas.ClientLoad, flags: LoadOptions) -> LoadOptions:
    """How a model is loaded. What the message does not give is as the flags say. Raises InputError."""
    options = given(message, *_LOADING)
    if message.sliding_window is not UNSET:
        options["use_sliding_window"] = message.sliding_window
    return replace(flags, **options)


def _model(info: ModelInfo) -> schemas.Model:
    return schemas.Model(**asdict(info))
