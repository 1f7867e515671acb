"""A process that another program started: its pipes, and its end."""

from __future__ import annotations

import os
import time

PARENT_POLL_S = 0.5


def guarded_pipes() -> tuple[int, int]:
    """Descriptors for the protocol, in and out. From now on stdin is empty, and what is printed to stdout goes to
    stderr: no library can read or write the protocol."""
    incoming, outgoing = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return incoming, outgoing


def end_with_parent(parent: int) -> None:
    """End this process when its parent has ended: a killed parent sends no message, and its other children may hold our
    stdin open. Never returns."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
