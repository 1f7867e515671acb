"""The server process: a socket, uvicorn, and the end after SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import replace
from errno import EADDRINUSE
from pathlib import Path
from typing import Any

import uvicorn

from ...checkpoint.load import LoadOptions
from ...errors import InputError
from ..error_codes import ServingError
from ..service.limits import Limits
from ..service.runner import Stage
from ..service.service import Service
from .app import application
from .connection import ACCEPTED, Connection, connections_that_fit
from .settings import Settings

HEAD_BYTES = 16 << 10
KEEP_ALIVE_S = 15
CODES = {signal.SIGTERM: 0, signal.SIGINT: 130}
"""The signals that end the server, and the exit code after each."""
BACKLOG = 1024
"""Connections that may wait to be accepted."""
LAST_ERRORS_S = 0.3
"""How long after the drain the errors of what is left may take."""


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
    settings = replace(settings, connections=connections_that_fit(settings.connections))
    server = Server(application(service, settings), settings, drain_s, service.abandon)
    loading = service.load(path_or_repo, options, stage)
    loading.add_done_callback(lambda done: server.stop(1) if _failure(done) else None)
    for number, code in CODES.items():  # until the loop is there
        with suppress(ValueError):  # not in the main thread
            signal.signal(number, lambda *_, code=code: server.stop(code))
    try:
        asyncio.run(server.serve([listener]))
    finally:
        service.close(timeout=0 if server.code else 1)
    if failure := _failure(loading):
        raise InputError(str(failure)) if failure.code == "bad_model" else failure
    return server.code


def _failure(loading: Future[Any]) -> ServingError | None:
    """Why the model could not be loaded; None if it was, or was not waited for."""
    failure = loading.exception() if loading.done() else None
    return failure if isinstance(failure, ServingError) and failure.code != "shutting_down" else None


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address. port: 0 for any free one. Raises InputError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        other = "; choose another with --port" if getattr(error, "errno", None) == EADDRINUSE else ""
        raise InputError(f"cannot listen on {host}, port {port}: {reason}{other}") from None


def listen_at(path: Path) -> socket.socket:
    """A Unix socket that only this user may use. A file that a killed server left is replaced. Raises InputError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()
        listener.bind(str(path))
        listener.listen()  # now, or clients are refused until the server runs
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

    def __init__(self, app: Any, settings: Settings, drain_s: float, on_late: Callable[[], None] = lambda: None):
        """app: an ASGI application. drain_s: seconds for the last answers. on_late: called after these seconds if
        answers are left; it should make them fail."""
        self.code = 0
        self._drain_s, self._on_late = drain_s, on_late

        class Protocol(Connection):
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
                timeout_graceful_shutdown=drain_s + LAST_ERRORS_S,  # type: ignore[arg-type]
                backlog=ACCEPTED,
                h11_max_incomplete_event_size=HEAD_BYTES,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        asyncio.get_running_loop().set_exception_handler(_Quiet())
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio accepts as many in one go as it lets wait, so it was given less

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, and wait for the last answers."""
        late = asyncio.get_running_loop().call_later(self._drain_s, self._on_late)
        await super().shutdown(sockets)
        late.cancel()

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
        before = {}
        try:
            for number, code in CODES.items():
                before[number] = signal.getsignal(number)
                loop.add_signal_handler(number, self.stop, code)
        except (RuntimeError, ValueError):  # not in the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


class _Quiet:
    """Writes what asyncio reports, such as too many open files, as one line on stderr, at most once a minute."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if loop.time() < self._next:
            return
        self._next = loop.time() + 60
        error = context.get("exception")
        print(f"pg_mlx: {context['message']} ({type(error).__name__})", file=sys.stderr, flush=True)
