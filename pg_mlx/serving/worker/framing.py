"""Lines of JSON and frames of bytes on a pair of pipes, bounded before they are read."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ..strict_json import BadJson, loads

VERSION = 1
LINE_BYTES = 64 << 20
"""Longest line of a client, without its newline: a picture of 48 MiB in base64."""
ANSWER_BYTES = 1 << 30
"""Longest line of a worker."""
LAST = ("hello", "loaded", "done", "cancelled", "stats", "unloaded", "bye", "error")
"""Types of a worker's messages after which nothing more comes for that request."""
FRAME_BYTES = 1 << 53
"""Longest frame that a message may announce; the worker's own limit is far below."""

_CHUNK = 1 << 16
_BACKLOG = 1000
"""Messages that may wait for a slow client before nothing more is read from it."""

Message = dict[str, Any]


class LineTooLong(Exception):
    """A line was over the limit. It has been skipped."""


class Incoming:
    """Reads lines and frames from a file descriptor."""

    def __init__(self, descriptor: int, limit: int = LINE_BYTES):
        """limit: of a line, in bytes without its newline."""
        self._descriptor, self._limit = descriptor, limit
        self._buffer = bytearray()

    def message(self) -> Message | None:
        """The next line as a JSON object; None at the end. An unfinished last line does not count. Raises LineTooLong,
        BadJson."""
        line = self.line()
        return None if line is None else parse(line)

    def line(self) -> bytes | None:
        """The next line with its newline; None at the end. Raises LineTooLong."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > self._limit:
                if not self._skip_line():
                    return None
                raise LineTooLong
            if not self._fill():
                return None
        if end > self._limit:
            self._take(end + 1)
            raise LineTooLong
        return self._take(end + 1)

    def frame(self, length: int) -> bytes | None:
        """The next `length` bytes; None if the end comes first."""
        while len(self._buffer) < length:
            if not self._fill():
                return None
        return self._take(length)

    def pieces(self, length: int) -> Iterator[bytes]:
        """The next `length` bytes in pieces, as they arrive; fewer if the end comes first."""
        while length > 0 and (self._buffer or self._fill()):
            piece = self._take(min(length, len(self._buffer)))
            length -= len(piece)
            yield piece

    def skip(self, length: int) -> bool:
        """Drop the next `length` bytes. False if the end came first."""
        return sum(map(len, self.pieces(length))) == length

    def _skip_line(self) -> bool:
        """Drop the rest of a line, without holding it. False if the end came first."""
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
    """The JSON object of a line. Whole numbers are ints, however they are written, so that `frame_lengths` and the
    structs of schemas.py mean the same by {"bytes": 6412.0}. Raises BadJson."""
    message = loads(line)
    if not isinstance(message, dict):
        raise BadJson("it is no object")
    return message


def frame_lengths(message: Message) -> list[int]:
    """The lengths in bytes of the frames that follow this message, even if it will be refused for something else.

    A length over FRAME_BYTES counts, too: all that follows is that frame, and must not be read as lines. A value that
    is no whole number from 0 announces no frame.
    """
    images = message.get("images") if message.get("type") == "generate" else None
    if not isinstance(images, list):
        return []
    values = (image.get("bytes") for image in images if isinstance(image, dict))
    numbers = (value for value in values if isinstance(value, int | float) and not isinstance(value, bool))
    return [int(number) for number in numbers if number >= 0 and number == int(number)]


def line_of(message: Message) -> bytes:
    """A message as a line of JSON in ASCII, newline included. Raises TypeError or ValueError if it is no JSON."""
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, waiting for the reader. Raises OSError if nobody reads any more."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


class Outgoing:
    """Writes messages on its own thread, so that a slow reader holds up nobody but those who call `wait`."""

    def __init__(self, descriptor: int, on_closed: Callable[[], None]):
        """on_closed: called if nobody reads any more."""
        self._descriptor, self._on_closed = descriptor, on_closed
        self._waiting: deque[Callable[[], Message] | Message] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self._thread.start()

    def send(self, message: Message | Callable[[], Message]) -> None:
        """Queue a message; returns at once. What takes time to make comes as a function, which the writer calls."""
        with self._changed:
            self._waiting.append(message)
            self._changed.notify_all()

    def wait(self) -> None:
        """Block while too many messages wait for the reader."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < _BACKLOG)

    def close(self) -> None:
        """Write the messages that wait, then end the thread."""
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
