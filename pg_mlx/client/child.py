"""A worker process as its parent sees it: sends requests, and calls the listener of each with its messages."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ..errors import InputError
from ..serving.error_codes import ServingError
from ..serving.worker.framing import ANSWER_BYTES, LAST, Incoming, Message, line_of, write_all


class Child:
    """One worker process, from its start to its end. All methods may be called from any thread."""

    def __init__(self, command: Sequence[str]):
        """Start it. command: what starts a worker. Raises ServingError."""
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
        """Send a request without its id. frames: that follow the line. Returns the id. The listener is called with all
        messages of the request; the last one may be the error `worker_died`. Raises InputError or ServingError."""
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
                    write_all(self._stdin.fileno(), part)
        except (OSError, ValueError):
            pass  # the worker has died: the reader sees that and calls the listener
        return request_id

    def ask(self, message: Message, on_other: Callable[[Message], None] = lambda message: None) -> Message:
        """Send a request, and return its last message. on_other: called with those before it. Raises ServingError for
        an error."""
        future: Future[Message] = Future()

        def listen(answer: Message) -> None:
            if answer["type"] in LAST:
                future.set_result(answer)
            else:
                on_other(answer)

        self.send(message, listen)
        answer = future.result()
        if answer["type"] == "error":
            raise ServingError(answer["code"], answer["message"])
        return answer

    def cancel(self, request_id: int) -> None:
        """Cancel a request, unless it is answered."""
        with self._lock:
            if self.ended or request_id not in self._listeners:
                return
        self.send({"type": "cancel", "request": request_id}, lambda message: None)

    def close(self, timeout: float) -> None:
        """End the worker once the accepted requests are answered. After `timeout` seconds it is killed."""
        try:
            self.send({"type": "shutdown"}, lambda message: None)
            self.process.wait(timeout)
        except (ServingError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        """Kill the worker, and wait for its end."""
        self.process.kill()
        self.process.wait()
        self._stdin.close()

    def _read(self) -> None:
        incoming = Incoming(self._stdout.fileno(), limit=ANSWER_BYTES)
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
            last = message["type"] in LAST
            listener = self._listeners.pop(request_id, None) if last else self._listeners.get(request_id)  # type: ignore
        if listener:
            _tell(listener, message)


def _tell(listener: Callable[[Message], None], message: Message) -> None:
    try:
        listener(message)
    except Exception as error:  # as when an event loop was closed
        print(f"pg_mlx.client: a listener failed: {type(error).__name__}: {error}", file=sys.stderr)
