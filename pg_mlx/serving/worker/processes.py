"""A process that another program started: its pipes, and its end."""

from __future__ import annotations

import os
import time

PARENT_POLL_S = 0.5


def guarded_pipes() -> tuple[int, int]:
    """Descriptors for the protocol alone: what libraries print goes to stderr, and stdin is empty for them."""
    incoming, outgoing = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return incoming, outgoing


def end_with_parent(parent: int) -> None:
    """A parent that is killed cannot say goodbye, and its other children may hold our stdin open."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
