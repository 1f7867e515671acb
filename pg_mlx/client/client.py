"""A worker process for programs in Python: their own process loads no MLX, and goes on whatever happens to the model.

    with Client("google/paligemma2-3b-mix-448") as client:
        print(client.generate("caption en", "cat.jpg").text)

The process is started and the model loaded when they are first needed. If it dies, the requests in flight fail
("worker_died"), and the next one starts another.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ..errors import InputError
from ..serving.error_codes import ServingError
from ..serving.worker.framing import VERSION, Message
from .child import Child
from .frozen import worker_command

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
    """As pg_mlx.Generation, in plain types. width, height: of the first picture, in pixels."""

    text: str
    token_ids: list[int]
    finish_reason: str
    regions: list[Region]
    malformed: list[dict[str, str]]
    width: int
    height: int
    stats: dict[str, float]
    logprobs: list[dict[str, Any]] | None = None
    """Log-probabilities of token_ids in OpenAI's form, if `logprobs` was asked for."""


Event = str | Region | Answer
"""What a stream gives: more text, a region that has become complete, and at last the answer."""


class Client:
    """All methods may be called from several threads at the same time; requests are then answered together."""

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        command: Sequence[str] | None = None,
        progress: Callable[[str, int, int], None] = lambda stage, done, of: None,
        **load: Any,
    ):
        """model: folder or hub repository; the bundled demo if None. command: what starts a worker; by default as
        `frozen.worker_command`. progress: called with each stage of loading, how much of it is done, and how much it
        is. load: other fields of the `load` message (dtype, revision, adapter_path, ...)."""
        self._load = {"type": "load", **({} if model is None else {"model": str(model)}), **load}
        self._command, self._progress = list(command) if command else None, progress
        self._lock = threading.Lock()
        self._worker: Child | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the worker and load the model, if it does not run. Raises ServingError, and InputError where nothing is
        known to start a worker with."""
        self._running()

    @property
    def pid(self) -> int | None:
        """The process id of the worker, if one was started."""
        return self._worker.process.pid if self._worker else None

    def generate(self, prompt: str, image: Image | Sequence[Image], **options: Any) -> Answer:
        """The whole answer. options: other fields of the `generate` message (max_tokens, temperature, constrain,
        deadline_s, ...). Raises ServingError, whose `code` says which error it is."""
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
        """Send a request. The listener is called with its messages as they come, on another thread. Returns a function
        that cancels the request. Raises InputError or ServingError."""
        line, frames = _generate(prompt, image, options)
        worker = self._running()
        request_id = worker.send(line, listener, frames)
        return lambda: worker.cancel(request_id)

    def stats(self) -> Message:
        """The worker's `stats` message."""
        return self._running().ask({"type": "stats"})

    def close(self, timeout: float = CLOSE_S) -> None:
        """End the worker once the accepted requests are answered. After `timeout` seconds it is killed."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker:
            worker.close(timeout)

    def _running(self) -> Child:
        with self._lock:
            if self._worker is None or self._worker.ended:
                self._worker = Child(self._command or worker_command())
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
        """As Client.start."""
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
        """As Client.stats."""
        return await asyncio.to_thread(self._client.stats)

    async def close(self, timeout: float = CLOSE_S) -> None:
        """As Client.close."""
        await asyncio.to_thread(self._client.close, timeout)


def event_of(message: Message) -> Event:
    """The event that a message is. Raises ServingError for an error message."""
    if message["type"] == "error":
        raise ServingError(message["code"], message["message"])
    if message["type"] == "done":
        return Answer(**{name: message[name] for name in Answer.__dataclass_fields__ if name in message})
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
