"""A worker process for programs in Python: their own process loads no MLX, and survives whatever happens to the model.

    with Client("google/paligemma2-3b-mix-448") as client:
        print(client.generate("caption en", "cat.jpg").text)

The process is started and the model loaded when they are first needed. If it dies, the requests in flight fail
("worker_died"), and the next one starts another.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from .errors import InputError
from .serving.codes import ServingError
from .serving.framing import VERSION, Incoming, Message, line_of

__all__ = ["Answer", "AsyncClient", "Client", "Image", "Region", "ServingError"]

Image = str | Path | bytes
"""A file by its path, or the bytes of one."""

CLOSE_S = 30.0
"""How long `close` waits for what was accepted, before it kills."""


class Region(TypedDict):
    """box: x0, y0, x1, y1 in pixels of the first picture, box_normalized in 0..1 of it. mask: run lengths in COCO's
    form (pg_mlx.regions.rle.decode reads them) over that picture."""

    label: str
    box: list[float]
    box_normalized: list[float]
    score: float | None
    mask: dict[str, Any] | None


@dataclass(frozen=True)
class Answer:
    """As pg_mlx.Generation, in plain types. width, height: of the first picture."""

    text: str
    token_ids: list[int]
    finish_reason: str
    regions: list[Region]
    malformed: list[dict[str, str]]
    width: int
    height: int
    stats: dict[str, float]


Event = str | Region | Answer
"""Of a stream: more text, a region that became complete, and at last the answer."""

_LAST = ("hello", "loaded", "done", "cancelled", "stats", "unloaded", "bye", "error")


class Client:
    """All methods may be called from several threads at the same time; requests are then answered together."""

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        command: Sequence[str] = (sys.executable, "-m", "pg_mlx", "worker"),
        progress: Callable[[str, int, int], None] = lambda stage, done, of: None,
        **load: Any,
    ):
        """model: folder or hub repository; the bundled demo if None. command: what starts a worker. progress: told the
        stages of loading. load: other fields of the `load` message (dtype, revision, adapter_path, ...)."""
        self._load = {"type": "load", **({} if model is None else {"model": str(model)}), **load}
        self._command, self._progress = list(command), progress
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the worker and load the model, if it does not run. Raises ServingError."""
        self._running()

    @property
    def pid(self) -> int | None:
        """Of the worker, if one was started."""
        return self._worker.process.pid if self._worker else None

    def generate(self, prompt: str, image: Image | Sequence[Image], **options: Any) -> Answer:
        """The whole answer. options: other fields of the `generate` message (max_tokens, temperature, constrain,
        deadline_s, ...). Raises ServingError, whose `code` tells failures apart."""
        *_, last = self.stream(prompt, image, stream=False, **options)
        assert isinstance(last, Answer)
        return last

    def stream(self, prompt: str, image: Image | Sequence[Image], **options: Any) -> Iterator[Event]:
        """The answer as it comes. Closing the iterator cancels the request."""
        messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        cancel = self.submit(messages.put, prompt, image, **options)
        try:
            while True:
                event = event_of(messages.get())
                yield event
                if isinstance(event, Answer):
                    return
        finally:
            cancel()

    def submit(
        self, listener: Callable[[Message], None], prompt: str, image: Image | Sequence[Image], **options: Any
    ) -> Callable[[], None]:
        """What `stream` is made of: the listener is told the request's messages as they are, on another thread. Returns
        a function that cancels it."""
        line, frames = _generate(prompt, image, options)
        worker = self._running()
        request_id = worker.send(line, listener, frames)
        return lambda: worker.cancel(request_id)

    def stats(self) -> Message:
        """The worker's `stats` message."""
        return self._running().ask({"type": "stats"})

    def close(self, timeout: float = CLOSE_S) -> None:
        """End the worker, once what was accepted is answered."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker:
            worker.close(timeout)

    def _running(self) -> _Worker:
        with self._lock:
            if self._worker is None or self._worker.ended:
                self._worker = _Worker(self._command)
                try:
                    self._worker.ask({"type": "hello", "protocols": [VERSION]})
                    self._worker.ask(self._load, self._on_progress)
                except BaseException:
                    self._worker.kill()
                    self._worker = None
                    raise
            return self._worker

    def _on_progress(self, message: Message) -> None:
        self._progress(message["stage"], message["done"], message["of"])


class AsyncClient:
    """The same for asyncio. Arguments as Client."""

    def __init__(self, model: str | Path | None = None, **options: Any):
        self._client = Client(model, **options)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        await asyncio.to_thread(self._client.start)

    async def generate(self, prompt: str, image: Image | Sequence[Image], **options: Any) -> Answer:
        """As Client.generate. Cancelling the task cancels the request."""
        async for event in self.stream(prompt, image, stream=False, **options):
            if isinstance(event, Answer):
                return event
        raise AssertionError("a stream ends with an answer or an error")

    async def stream(self, prompt: str, image: Image | Sequence[Image], **options: Any) -> AsyncIterator[Event]:
        """As Client.stream."""
        loop, messages = asyncio.get_running_loop(), asyncio.Queue[Message]()

        def listen(message: Message) -> None:
            loop.call_soon_threadsafe(messages.put_nowait, message)

        submitted = asyncio.ensure_future(asyncio.to_thread(self._client.submit, listen, prompt, image, **options))
        try:
            cancel = await asyncio.shield(submitted)
        except asyncio.CancelledError:  # the thread goes on
            submitted.add_done_callback(lambda done: done.cancelled() or done.exception() or done.result()())
            raise
        try:
            while True:
                event = event_of(await messages.get())
                yield event
                if isinstance(event, Answer):
                    return
        finally:
            cancel()

    async def stats(self) -> Message:
        return await asyncio.to_thread(self._client.stats)

    async def close(self, timeout: float = CLOSE_S) -> None:
        await asyncio.to_thread(self._client.close, timeout)


def event_of(message: Message) -> Event:
    """Raises ServingError for an error message."""
    if message["type"] == "error":
        raise ServingError(message["code"], message["message"])
    if message["type"] == "done":
        return Answer(**{name: message[name] for name in Answer.__dataclass_fields__})
    return message[message["type"]]  # of text and region


def _generate(prompt: str, image: Image | Sequence[Image], options: Message) -> tuple[Message, list[bytes]]:
    """A generate message without id, and the frames behind it. Raises InputError."""
    images = [image] if isinstance(image, str | Path | bytes) else list(image)
    if not all(isinstance(one, str | Path | bytes) for one in images):
        raise InputError("a picture must be the path or the bytes of a file")
    frames = [one for one in images if isinstance(one, bytes)]
    described = [
        {"bytes": len(one)} if isinstance(one, bytes) else {"path": str(Path(one).absolute())} for one in images
    ]
    given = {name: value for name, value in options.items() if value is not None}
    return {"type": "generate", "prompt": prompt, "images": described, **given}, frames


class _Worker:
    """One process, from its start to its end."""

    def __init__(self, command: Sequence[str]):
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        except OSError as error:
            raise ServingError("worker_died", f"cannot start {command[0]}: {error.strerror}") from None
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self.ended = False
        self._ids = itertools.count()
        self._listeners: dict[int, Callable[[Message], None]] = {}
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        threading.Thread(target=self._read, name="pg_mlx client", daemon=True).start()

    def send(self, message: Message, listener: Callable[[Message], None], frames: Sequence[bytes] = ()) -> int:
        """Returns the request's id. The listener gets all its messages; the last one may say that the worker died."""
        with self._lock:
            if self.ended:
                raise ServingError("worker_died", "the worker has ended")
            request_id = next(self._ids)
            self._listeners[request_id] = listener
        try:
            data = line_of({**message, "id": request_id})
        except (TypeError, ValueError) as error:
            del self._listeners[request_id]
            raise InputError(f"the request is no JSON: {error}") from None
        try:
            with self._writing:
                for part in (data, *frames):
                    _write(self._stdin.fileno(), part)
        except (OSError, ValueError):
            pass  # it has died, which the reader sees
        return request_id

    def ask(self, message: Message, on_other: Callable[[Message], None] = lambda message: None) -> Message:
        """The last message. Raises ServingError if it is an error."""
        future: Future[Message] = Future()

        def listen(answer: Message) -> None:
            if answer["type"] in _LAST:
                future.set_result(answer)
            else:
                on_other(answer)

        self.send(message, listen)
        answer = future.result()
        if answer["type"] == "error":
            raise ServingError(answer["code"], answer["message"])
        return answer

    def cancel(self, request_id: int) -> None:
        with self._lock:
            if self.ended or request_id not in self._listeners:
                return
        self.send({"type": "cancel", "request": request_id}, lambda message: None)

    def close(self, timeout: float) -> None:
        try:
            self.send({"type": "shutdown"}, lambda message: None)
            self.process.wait(timeout)
        except (ServingError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        """It and its pipes are gone when this returns."""
        self.process.kill()
        self.process.wait()
        self._stdin.close()

    def _read(self) -> None:
        incoming = Incoming(self._stdout.fileno(), limit=1 << 30)
        try:
            while (message := incoming.message()) is not None:
                self._dispatch(message)
        except Exception as error:  # not our protocol
            print(f"pg_mlx.client: {type(error).__name__}: {error}", file=sys.stderr)
            self.process.kill()
        code = self.process.wait()
        with self._lock:
            self.ended = True
            left = list(self._listeners.values())
            self._listeners.clear()
        self._stdout.close()
        for listener in left:
            _tell(listener, {"type": "error", "code": "worker_died", "message": f"the worker ended with code {code}"})

    def _dispatch(self, message: Message) -> None:
        request_id = message.get("id")
        with self._lock:
            last = message["type"] in _LAST
            listener = self._listeners.pop(request_id, None) if last else self._listeners.get(request_id)  # type: ignore
        if listener:
            _tell(listener, message)


def _tell(listener: Callable[[Message], None], message: Message) -> None:
    try:
        listener(message)
    except Exception as error:  # as when an event loop was closed
        print(f"pg_mlx.client: a listener failed: {type(error).__name__}: {error}", file=sys.stderr)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
