"""The server process: a socket, uvicorn, and the end after SIGTERM or Ctrl-C.

uvicorn has no limit on the time of a request's head, and answers too many connections and broken HTTP in plain text. So
a class of uvicorn's that is not public is changed here; pyproject.toml bounds its version, and a test checks what is
used.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...checkpoint.load import LoadOptions
from ...errors import InputError
from ..error_codes import ServingError
from ..service.limits import Limits
from ..service.runner import Stage
from ..service.service import Service
from .app import application
from .errors import APIError
from .settings import Settings

HEAD_BYTES = 16 << 10
KEEP_ALIVE_S = 15


def serve(
    listener: socket.socket,
    path_or_repo: str | Path,
    options: LoadOptions,
    limits: Limits,
    settings: Settings,
    drain_s: float,
    stage: Stage = lambda name, done, of: None,
) -> int:
    """Serve until SIGTERM (returns 0), Ctrl-C (130), or a failure of the model after which a new process is needed (1).

    The model is loaded while the server answers already. listener: bound; the caller closes it. drain_s: seconds for
    the last answers. stage: called with the stages of loading. Raises InputError or ServingError if the model cannot be
    loaded.
    """
    service = Service(limits, on_broken=lambda: server.stop(1))
    server = Server(application(service, settings), settings, drain_s)
    loading = service.load(path_or_repo, options, stage)
    loading.add_done_callback(lambda done: server.stop(1) if done.exception() else None)
    try:
        asyncio.run(server.serve([listener]))
    finally:
        service.close(timeout=0 if server.code else 1)
    if loading.done() and isinstance(failure := loading.exception(), ServingError):
        raise InputError(str(failure)) if failure.code == "bad_model" else failure
    return server.code


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address. port: 0 for any free one. Raises InputError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}, port {port}: {reason}") from None


def listen_at(path: Path) -> socket.socket:
    """A Unix socket that only this user may use. A file that a killed server left is replaced. Raises InputError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()
        listener.bind(str(path))
    except (OSError, ValueError) as error:
        listener.close()
        raise InputError(f"cannot listen at {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        os.umask(before)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        return client.connect_ex(str(path)) == 0


class Server(uvicorn.Server):
    """uvicorn's server, with an exit code, and with limits on connections and on the time of a request's head."""

    def __init__(self, app: Any, settings: Settings, drain_s: float):
        """app: an ASGI application. drain_s: seconds for the last answers."""
        self.code = 0

        class Protocol(_Protocol):
            seconds, most = settings.header_s, settings.connections

        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="critical",  # its errors would hold tracebacks; the application has a log of its own
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=drain_s,  # type: ignore[arg-type]
                h11_max_incomplete_event_size=HEAD_BYTES,
            )
        )

    def stop(self, code: int) -> None:
        """Accept nothing more, and end when the accepted requests are answered; at once if called again. code: of the
        exit, unless there is one already. May be called from any thread."""
        self.code = self.code or code
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While uvicorn serves: SIGTERM and Ctrl-C stop it."""
        loop = asyncio.get_running_loop()
        codes = {signal.SIGTERM: 0, signal.SIGINT: 130}
        try:
            for number, code in codes.items():
                loop.add_signal_handler(number, self.stop, code)
        except (RuntimeError, ValueError):  # not in the main thread
            codes = {}
        try:
            yield
        finally:
            for number in codes:
                loop.remove_signal_handler(number)


class _Protocol(H11Protocol):
    """One connection, which is closed if the head of a request does not come in time."""

    seconds: float
    most: int
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most:
            full = APIError(503, "busy", f"{self.most} connections are open", headers={"Connection": "close"})
            self.app = full.response()
        self._head = self.loop.call_later(self.seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_timer()
        elif self._head is None and (self.cycle is None or self.cycle.response_complete):
            self._head = self.loop.call_later(self.seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer broken HTTP with an error in JSON."""
        response = APIError(400, "bad_request", "this is no HTTP, or broken").response()
        headers = [*response.raw_headers, (b"connection", b"close")]
        events = h11.Response(status_code=400, headers=headers), h11.Data(data=bytes(response.body)), h11.EndOfMessage()
        try:
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer is on its way already
            pass
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._head:
            self._head.cancel()
            self._head = None
