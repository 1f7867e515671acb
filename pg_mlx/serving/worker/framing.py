"""Lines of JSON and frames of bytes on a pair of pipes, bounded before they are read."""

from __future__ import annotations

import json
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

VERSION = 1
LINE_BYTES = 64 << 20
"""Longest line, its newline not counted: a picture of 48 MiB in base64."""

ANSWER_BYTES = 1 << 30
"""Longest line of a worker."""
LAST = ("hello", "loaded", "done", "cancelled", "stats", "unloaded", "bye", "error")
"""Types of a worker's messages after which nothing more comes for that request."""

_CHUNK = 1 << 16
_BACKLOG = 1000
"""Messages that may wait for a slow client before nothing more is read from it."""

Message = dict[str, Any]


class LineTooLong(Exception):
    """The line was passed over."""


class BadJson(Exception):
    """The line is no JSON object; the message says why."""


class Incoming:
    """What comes through a file descriptor."""

    def __init__(self, descriptor: int, limit: int = LINE_BYTES):
        self._descriptor, self._limit = descriptor, limit
        self._buffer = bytearray()

    def message(self) -> Message | None:
        """The next line's; None at the end. An unfinished last line does not count. Raises LineTooLong, BadJson."""
        line = self.line()
        return None if line is None else parse(line)

    def line(self) -> bytes | None:
        """With its newline; None at the end. Raises LineTooLong."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > self._limit:
                if not self._pass_over():
                    return None
                raise LineTooLong
            if not self._fill():
                return None
        if end > self._limit:
            self._take(end + 1)
            raise LineTooLong
        return self._take(end + 1)

    def frame(self, length: int) -> bytes | None:
        """The next bytes; None if there are not so many."""
        while len(self._buffer) < length:
            if not self._fill():
                return None
        return self._take(length)

    def pieces(self, length: int) -> Iterator[bytes]:
        """The next bytes as they come, without holding them; fewer if the end comes first."""
        while length > 0 and (self._buffer or self._fill()):
            piece = self._take(min(length, len(self._buffer)))
            length -= len(piece)
            yield piece

    def skip(self, length: int) -> bool:
        """Let so many bytes pass. False if the end came first."""
        return sum(map(len, self.pieces(length))) == length

    def _pass_over(self) -> bool:
        """The rest of a line, without holding it. False if the end came first."""
        while (end := self._buffer.find(b"\n")) < 0:
            self._buffer.clear()
            if not self._fill():
                return False
        self._take(end + 1)
        return True

    def _fill(self) -> bool:
        chunk = os.read(self._descriptor, _CHUNK)
        self._buffer += chunk
        return bool(chunk)

    def _take(self, length: int) -> bytes:
        taken = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        return taken


def parse(line: bytes) -> Message:
    """Raises BadJson."""
    try:
        message = json.loads(line.decode(), parse_constant=_no_number, parse_float=_finite, parse_int=_bounded)
    except RecursionError:
        raise BadJson("it is nested too deep") from None
    except ValueError as error:
        raise BadJson(" ".join(str(error).split())) from None
    if not isinstance(message, dict):
        raise BadJson("it is no object")
    return message


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is beyond all floats")
    return value


def _bounded(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a whole number is beyond 64 bits")
    return int(digits)


def frame_lengths(message: Message) -> list[int]:
    """Of the frames behind this line, even if it is refused for something else."""
    images = message.get("images") if message.get("type") == "generate" else None
    if not isinstance(images, list):
        return []
    lengths = (image.get("bytes") for image in images if isinstance(image, dict))
    return [length for length in lengths if type(length) is int and 0 <= length <= 1 << 53]


def line_of(message: Message) -> bytes:
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def write_all(descriptor: int, data: bytes) -> None:
    """Raises OSError if nobody reads any more."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class Outgoing:
    """Messages on their way out, written by a thread of their own, so that no one waits for a slow reader but the one
    who asks for it."""

    def __init__(self, descriptor: int, on_closed: Callable[[], None]):
        """on_closed: called if nobody reads any more."""
        self._descriptor, self._on_closed = descriptor, on_closed
        self._waiting: deque[Callable[[], Message] | Message] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self._thread.start()

    def send(self, message: Message | Callable[[], Message]) -> None:
        """Returns at once. What takes time to put into words comes as a function, which the writer calls."""
        with self._changed:
            self._waiting.append(message)
            self._changed.notify_all()

    def wait(self) -> None:
        """Until the reader has caught up."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < _BACKLOG)

    def close(self) -> None:
        """Write what waits, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                message = self._waiting.popleft()
                self._changed.notify_all()
            try:
                write_all(self._descriptor, line_of(message() if callable(message) else message))
            except OSError:
                self._on_closed()
                return
