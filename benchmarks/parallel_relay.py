"""(part of `parallel`) A TCP relay that keeps everything for some time: PORT TARGET_PORT MILLISECONDS."""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
import time


def main() -> None:
    port, target, delay_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 1e3
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            incoming, _ = listener.accept()
            outgoing = connected(target)
            for one in (incoming, outgoing):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink in ((incoming, outgoing), (outgoing, incoming)):
                threading.Thread(target=pump, args=(source, sink, delay_s), daemon=True).start()


def connected(port: int) -> socket.socket:
    """A connection to a port at which somebody will soon listen."""
    while True:
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port))
        time.sleep(0.05)


def pump(source: socket.socket, sink: socket.socket, delay_s: float) -> None:
    """Pass on what comes, each piece when it is due."""
    pieces: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

    def deliver() -> None:
        while True:
            due, data = pieces.get()
            if (wait := due - time.perf_counter()) > 0:
                time.sleep(wait)
            if not data:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)

    threading.Thread(target=deliver, daemon=True).start()
    while True:
        try:
            data = source.recv(1 << 20)
        except OSError:
            data = b""
        pieces.put((time.perf_counter() + delay_s, data))
        if not data:
            return


if __name__ == "__main__":
    main()
