"""Ctrl-C ends a command, but not in the middle of an import: C extensions take an exception there for a fault of their
own, and abort or report nonsense."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RETRY_S = 0.02
MOST_S = 2.0
"""How long an interrupt waits for imports."""

_waited = 0.0


def spare_imports() -> None:
    """From now on SIGINT raises KeyboardInterrupt only while the main thread imports nothing. Where SIGINT is ignored
    or has another handler, that stays."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _waited
    if signal.getsignal(signal.SIGINT) is not _interrupt:  # while it waited, the command took Ctrl-C over
        signal.raise_signal(signal.SIGINT)
        return
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") and _waited < MOST_S:
            _waited += RETRY_S
            signal.setitimer(signal.ITIMER_REAL, RETRY_S)  # SIGALRM then comes here again
            return
        frame = frame.f_back
    _waited = 0.0
    raise KeyboardInterrupt


def note_interrupts(pressed: list[int]) -> None:
    """From now on the first Ctrl-C adds to the list, so that work ends where it is whole; the second one interrupts."""

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)


@contextmanager
def interrupts_noted(pressed: list[int]) -> Iterator[None]:
    """As `note_interrupts`, until the end of the block."""
    before = signal.getsignal(signal.SIGINT)
    note_interrupts(pressed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
