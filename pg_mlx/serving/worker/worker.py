"""`pg-mlx worker`: a service behind stdin and stdout. The protocol is told in docs/protocol.md."""

from __future__ import annotations

import base64
import binascii
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ...checkpoint.load import LoadOptions
from ...demo import CHECKPOINT
from ...errors import InputError
from ...generation import SamplingOptions
from ..error_codes import ServingError
from ..service.limits import Limits
from ..service.requests import Answered, Ask, Event, Failed
from ..service.runner import ModelInfo
from ..service.service import Service
from .framing import LINE_BYTES, VERSION, BadJson, Incoming, LineTooLong, Message, Outgoing, frame_lengths
from .messages import Id, done_message, partial_message
from .processes import end_with_parent
from .schema import complaint, id_of

_OPTIONS = tuple(field.name for field in fields(SamplingOptions))
_PLAIN = ("logprobs", "deadline_s", "constrain", "max_regions")
_INTEGERS = ("max_tokens", "top_k", "seed", "max_regions")
_LOADING = {name: name for name in ("dtype", "adapter_path", "revision", "mask_decoder")}
_LOADING["sliding_window"] = "use_sliding_window"
"""Fields of a `load` message, and which of LoadOptions each one is."""
_TOLD_LIMITS = ("batch_size", "queue", "pictures", "picture_bytes", "prompt_characters", "prefix_tokens")


class Worker:
    """Reads requests until stdin ends, a client says shutdown or the system SIGTERM; then finishes what was accepted.
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
        """parent: its process id, asked for as early as possible. folders: those that pictures may be read from; None
        for all. loading, model: what a `load` message means by the fields that it leaves out."""
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
        self._over = threading.Event()
        self._code = 0
        self._farewell: Id | None = None

    def run(self) -> int:
        """Returns the exit code: 0, or 1 if the model broke and a new process should take over."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        threading.Thread(target=end_with_parent, args=(self._parent,), name="parent", daemon=True).start()
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self._over.wait()
        self._service.close()
        if self._farewell is not None:
            self._out.send({"type": "bye", "id": self._farewell})
        self._out.close()
        return self._code

    def _end(self, code: int) -> None:
        self._code = self._code or code
        self._over.set()

    def _on_signal(self, *_: object) -> None:
        if self._over.is_set():  # the second one
            os._exit(1)
        self._end(0)

    # --- requests -------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while self._read_one():
                self._out.wait()
        except Exception as error:
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
        request_id = id_of(message)
        wrong = complaint(message)
        frames = self._frames(message, request_id)
        if frames is None:
            return False
        if frames == [] and frame_lengths(message):
            return True  # refused, and passed over
        if request_id is None or wrong:
            self._fail(request_id, "bad_request", wrong or "it has no id")
        else:
            self._handle(message, request_id, frames)
        return True

    def _frames(self, message: Message, request_id: Id | None) -> list[bytes] | None:
        """The pictures behind a line, or none if they are too large. None if they end too early."""
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
                return None
            frames.append(frame)
        return frames

    def _handle(self, message: Message, request_id: Id, frames: list[bytes]) -> None:
        kind = message["type"]
        if not self._greeted and kind != "hello":
            self._fail(request_id, "hello_first", "say hello first")
            return
        with self._lock:
            if request_id in self._open:
                self._fail(request_id, "duplicate_id", "a request with this id is not answered yet")
                return
            self._open[request_id] = None
        try:
            getattr(self, f"_{kind}")(message, request_id, frames)
        except ServingError as error:
            self._answer_error(request_id, error.code, str(error))
        except InputError as error:
            self._answer_error(request_id, "bad_request", str(error))
        except Exception as error:
            print(f"pg-mlx worker: {kind} failed: {type(error).__name__}: {error}", file=sys.stderr)
            self._answer_error(request_id, "failed", f"unexpected failure ({type(error).__name__})")

    def _hello(self, message: Message, request_id: Id, _: list[bytes]) -> None:
        if VERSION not in message["protocols"]:
            raise ServingError("unsupported_protocol", f"only version {VERSION} is spoken here")
        self._greeted = True
        limits = {"line_bytes": LINE_BYTES, **{name: getattr(self._limits, name) for name in _TOLD_LIMITS}}
        capabilities = {
            "commands": ["hello", "load", "generate", "cancel", "stats", "unload", "shutdown"],
            "pictures": ["path", "base64", "bytes"],
            "limits": limits,
        }
        self._answer(request_id, type="hello", protocol=VERSION, version=__version__, capabilities=capabilities)

    def _load(self, message: Message, request_id: Id, _: list[bytes]) -> None:
        given = {field: message[name] for name, field in _LOADING.items() if name in message}
        try:
            options = replace(self._loading, **given)
        except InputError as error:
            raise ServingError("bad_model", str(error)) from None

        def stage(name: str, done: int, of: int) -> None:
            self._out.send({"type": "progress", "id": request_id, "stage": name, "done": done, "of": of})

        def loaded(info: ModelInfo) -> Message:
            return {"type": "loaded", "model": asdict(info)}

        self._later(self._service.load(message.get("model", self._model), options, stage), request_id, loaded)

    def _unload(self, _: Message, request_id: Id, __: list[bytes]) -> None:
        self._later(self._service.unload(), request_id, lambda _: {"type": "unloaded"})

    def _later(self, future: Future[Any], request_id: Id, answer: Any) -> None:
        def tell(done: Future[Any]) -> None:
            error = done.exception()
            if isinstance(error, ServingError):
                self._answer_error(request_id, error.code, str(error))
            else:
                self._answer(request_id, **answer(done.result()))

        future.add_done_callback(tell)

    def _generate(self, message: Message, request_id: Id, frames: list[bytes]) -> None:
        following = iter(frames)
        images = [next(following) if "bytes" in image else self._picture(image) for image in message["images"]]
        options = SamplingOptions(**_given(message, _OPTIONS))
        question = Ask(message["prompt"], images, options, **_given(message, _PLAIN))
        stream = message.get("stream", True)

        def listen(event: Event) -> None:
            if isinstance(event, Failed):
                self._answer_error(request_id, event.code, event.message)
            elif isinstance(event, Answered):
                self._close(request_id)
                self._out.send(lambda: done_message(request_id, event))
            elif stream:
                self._out.send(lambda: partial_message(request_id, event))

        cancel = self._service.submit(question, listen)
        with self._lock:
            if request_id in self._open:
                self._open[request_id] = cancel

    def _picture(self, image: dict[str, str]) -> bytes | Path:
        if "base64" in image:
            try:
                return base64.b64decode(image["base64"], validate=True)
            except (binascii.Error, ValueError):
                raise ServingError("bad_image", "a picture is no base64") from None
        return confined(image["path"], self._folders)

    def _cancel(self, message: Message, request_id: Id, _: list[bytes]) -> None:
        with self._lock:
            cancel = self._open.get(message["request"])
        if cancel:
            cancel()
        self._answer(request_id, type="cancelled", found=cancel is not None)

    def _stats(self, _: Message, request_id: Id, __: list[bytes]) -> None:
        model = self._service.model
        self._answer(request_id, type="stats", **self._service.stats(), model=model and asdict(model))

    def _shutdown(self, _: Message, request_id: Id, __: list[bytes]) -> None:
        if self._farewell is not None:
            raise ServingError("shutting_down", "shutdown was said before")
        self._farewell = request_id
        self._end(0)

    # --- answers --------------------------------------------------------------------------------------

    def _answer(self, request_id: Id, **message: Any) -> None:
        self._close(request_id)
        self._out.send({"type": message.pop("type"), "id": request_id, **message})

    def _answer_error(self, request_id: Id, code: str, message: str) -> None:
        self._close(request_id)
        self._fail(request_id, code, message)

    def _fail(self, request_id: Id | None, code: str, message: str) -> None:
        self._out.send({"type": "error", "id": request_id, "code": code, "message": message})

    def _close(self, request_id: Id) -> None:
        """It may be used again."""
        with self._lock:
            self._open.pop(request_id, None)


def confined(path: str, folders: list[Path] | None) -> Path:
    """The file that a path leads to, links followed. Raises ServingError if it is in none of the folders."""
    try:
        resolved = Path(path).resolve()
    except (OSError, RuntimeError, ValueError):
        raise ServingError("bad_image", "the path cannot be followed") from None
    if folders is not None and not any(resolved.is_relative_to(folder) for folder in folders):
        raise ServingError("bad_image", "pictures are not read from there")
    return resolved


def _given(message: Message, names: Sequence[str]) -> dict[str, Any]:
    """Those fields that there are. JSON knows one kind of number."""
    present = ((name, message[name]) for name in names if name in message)
    return {name: int(value) if name in _INTEGERS else value for name, value in present}
