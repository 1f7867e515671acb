"""One connection of the server, and how many of them there may be.

uvicorn has no limit on the time of a request's head, and answers too many connections and broken HTTP in plain text. So
this module changes a class of uvicorn's that is not public. pyproject.toml bounds uvicorn's version, and a test checks
what is used of it.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import sys
from contextlib import suppress

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import APIError

ACCEPTED = 8
"""Connections that asyncio accepts in one turn of its loop."""
OTHER_FILES = 6 * ACCEPTED + 64
"""Open files that the server needs beside its connections: those that are accepted and not counted yet, or closed and
not gone yet (a few turns of the loop), the model's, its libraries', pictures."""


MOST_PIECES, PIECE_BYTES = 4096, 64
"""A body in more pieces than this must have so many bytes in each, on average."""


def connections_that_fit(wanted: int) -> int:
    """How many connections the limit of open files allows, up to `wanted`; the limit is raised first, if it can be.
    Says so on stderr if they are fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    fit = max(1, min(wanted, soft - OTHER_FILES))
    if fit < wanted:
        print(f"{fit} connections at a time, since this process may open {soft} files (ulimit -n)", file=sys.stderr)
    return fit


class _Pieces(h11.Connection):
    """HTTP's parser, which refuses a body in tiny chunks. Each takes as long as a large one, and 256 kB of them are
    read in one turn of the loop: they would hold up everybody for seconds."""

    _count = _bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next part of what was received. Raises h11.RemoteProtocolError."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._count = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._count += 1
            self._bytes += len(event.data)
            if self._count > MOST_PIECES and self._bytes < PIECE_BYTES * self._count:
                raise h11.RemoteProtocolError("a body in tiny chunks")
        return event


class Connection(H11Protocol):
    """A connection. It is closed if the head of a request does not come in time. If there are too many connections, the
    one that has waited longest for a head is closed. If all of them are being answered, the newest gets an error."""

    seconds: float
    """Until the head of a request must be complete."""
    most: int
    """Connections at a time."""
    since = 0.0
    """When it was made, or its last request came; the loop's time."""
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.conn = _Pieces(h11.SERVER, self.config.h11_max_incomplete_event_size or 0)
        self.since = self.loop.time()
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
            # asyncio does so only where the listening socket names its protocol. Without it a small answer on a
            # connection that is kept waits 40 ms for the client to confirm the head.
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.most and not self._close_another():
            full = APIError(503, "busy", f"{self.most} connections are open", headers={"Connection": "close"})
            self.app = full.response()
        self._head = self.loop.call_later(self.seconds, transport.abort)

    def _close_another(self) -> bool:
        """Close the connection that has waited longest for a request; False if there is none. Unfinished heads go
        before connections that are kept for a next request."""
        idle = [other for other in self.connections if isinstance(other, Connection) and other.idle]
        idle = [other for other in idle if other is not self]
        if not idle:
            return False
        oldest = min(idle, key=lambda other: (other._head is None, other.since))
        self.connections.discard(oldest)  # it is lost a moment later
        oldest.transport.abort()
        return True

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop_timer()
            self.since = self.loop.time()
        elif self._head is None and self.idle:
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
        """The connection has ended."""
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._head:
            self._head.cancel()
            self._head = None
