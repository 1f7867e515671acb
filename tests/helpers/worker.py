"""A worker process and what it says, every message of it checked against the schema."""

from __future__ import annotations

import itertools
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from helpers.service import SCENE, WILD
from pg_mlx.serving.worker import framing
from pg_mlx.serving.worker.framing import LAST

WAIT_S = 120
SCHEMA = json.loads(Path(framing.__file__).with_name("protocol.schema.json").read_bytes())


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]})


CLIENT, WORKER = validator("client"), validator("worker")
MESSAGES = {name for name in SCHEMA["$defs"] if name.startswith(("client_", "worker_"))}

PATH = {"path": str(SCENE)}
LONG = dict(prompt="ocr", images=[PATH], max_tokens=8000, temperature=WILD.temperature, seed=WILD.seed)
"""The fields of a request whose answer goes on until it is stopped."""


class Raw:
    """The protocol by hand."""

    def __init__(self, *arguments: str, code: str | None = None):
        """code: a program to run in place of the command."""
        program = ["-c", code] if code else ["-m", "pg_mlx", "worker", "--dtype", "float32"]
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.stderr = b""
        self._ids = itertools.count(1000)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._read_stderr)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.messages.put(json.loads(line))
        self.messages.put(None)

    def _read_stderr(self) -> None:
        for line in self.process.stderr:
            self.stderr += line

    def write(self, data: bytes) -> None:
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def say(self, kind: str, *frames: bytes, **fields: Any) -> int | str:
        """Returns the message's id, a new one unless one is given."""
        message = {"type": kind, "id": next(self._ids), **fields}
        self.write(json.dumps(message).encode() + b"\n" + b"".join(frames))
        return message["id"]

    def next(self) -> dict[str, Any]:
        message = self.messages.get(timeout=WAIT_S)
        assert message is not None, self.stderr.decode()
        WORKER.validate(message)
        return message

    def until(self, request_id: object, *kinds: str) -> dict[str, Any]:
        """The next message of this id and one of these kinds; others are passed over."""
        while True:
            message = self.next()
            if message["id"] == request_id and message["type"] in kinds:
                return message

    def ask(self, kind: str, *frames: bytes, **fields: Any) -> dict[str, Any]:
        """The last message of a request."""
        return self.until(self.say(kind, *frames, **fields), *LAST)

    def greet(self, load: bool = True) -> Raw:
        assert self.ask("hello", protocols=[1])["type"] == "hello"
        if load:
            assert self.ask("load")["type"] == "loaded"
        return self

    def ended(self) -> int:
        """The exit code, once stdout has ended; nothing may come before."""
        assert self.messages.get(timeout=WAIT_S) is None
        for thread in self._threads:
            thread.join(WAIT_S)
        return self.process.wait(WAIT_S)


@pytest.fixture(scope="module")
def worker(ops: str) -> Iterator[Raw]:
    """One that has the demo loaded."""
    with Raw() as running:
        yield running.greet()
