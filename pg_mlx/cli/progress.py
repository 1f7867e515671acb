"""How far long work is, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

_SHOWN = 10
"""Errors that get a line."""
_EVERY_S, _EVERY_LOGGED_S = 0.2, 60.0
"""How often progress is written to a terminal, and to a log."""
_WIDTH = 48
"""Letters of what is being done, beside a bar. Names of tensors differ at their ends."""


class StatusLine:
    """How far something is, on stderr: on a terminal one line that is written over, in a log a new one each time."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self._written = time.monotonic()

    def show(self, text: str) -> None:
        """Write it, if the last time is long enough ago."""
        now = time.monotonic()
        if now - self._written >= (_EVERY_S if self.terminal else _EVERY_LOGGED_S):
            self._written = now
            sys.stderr.write(f"\r\x1b[K{text}" if self.terminal else f"{text}\n")
            sys.stderr.flush()

    def clear(self) -> None:
        """Before other lines, which come in its place."""
        if self.terminal:
            sys.stderr.write("\r\x1b[K")


class WorkProgress:
    """How much of the work of a `with` block is done, and the time left."""

    def __init__(self, what: str, unit: str, *, scaled: bool = False, after: float = 0.0, silent: bool = False):
        """what: is being done. unit: of what is counted. scaled: with kilo, mega and so on. after: seconds before there
        is a bar, and before the library that draws it is imported. silent: nothing is shown at all."""
        self._what, self._options = what, dict(desc=what[-_WIDTH:], unit=unit, unit_scale=scaled)
        self._line, self._began = StatusLine(), time.monotonic()
        self._after, self._silent = after, silent
        self._bar: Any = None

    def show(self, done: int, total: int, what: str = "") -> None:
        """So much is done. what: is being done now, if that changes."""
        if self._silent:
            return
        self._what = what or self._what
        now = time.monotonic()
        if self._line.terminal:
            if self._bar is None and now >= self._began + self._after:
                from tqdm import tqdm

                self._bar = tqdm(total=total or None, initial=done, leave=False, file=sys.stderr, **self._options)
            if self._bar is not None:
                self._bar.total = total or self._bar.total
                self._bar.set_description_str(self._what[-_WIDTH:], refresh=False)
                self._bar.update(max(0, done - self._bar.n))
        elif 0 < done < total:
            left = duration((now - self._began) * (total - done) / done)
            self._line.show(f"{self._what}: {done / total:.0%} done, {left} left")

    def __enter__(self) -> WorkProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class BatchProgress:
    """Counts the rows of one run of batch: how far it is, its rate, the time left, and the first errors."""

    def __init__(self, program: str, todo: int, of: int, errors: int):
        """todo: rows that this run makes. of: rows of its part. errors: rows with an error that are there already."""
        self.errors = errors
        self._program, self._todo, self._of, self._done, self._shown = program, todo, of, 0, 0
        self._status = StatusLine()
        self.begin()

    def begin(self) -> None:
        """The model is loaded; from now on the rate is measured."""
        self._began = time.monotonic()

    def row(self, row: dict[str, Any]) -> None:
        """A row is known. An error gets a line, if there were few before."""
        self._done += 1
        if row["error"] is not None:
            self.errors += 1
            self._shown += 1
            if self._shown <= _SHOWN:
                image = "" if row["image"] in row["error"] else f"{row['image']}: "
                self._line(f"{self._program}: {image}{row['error']}")
            if self._shown == _SHOWN:
                self._line("further errors are in the rows only")
        self._show()

    def shard(self, rows: int, errors: int) -> None:
        """So many rows are there, with so many errors among them."""
        self._done += rows
        self.errors += errors
        self._show()

    def close(self) -> None:
        """There are no more rows in this run."""
        self._status.clear()
        seconds = max(time.monotonic() - self._began, 1e-9)
        old = self._of - self._todo
        before = f"; {old} rows were there before" if old else ""
        rate = f" in {seconds:.1f} s, {self._done / seconds:.3g} a second" if self._done else ""
        if self._done or not self._todo:  # else a failure of the whole run is reported instead
            print(f"{self._done} of {self._todo} rows{rate}{before}", file=sys.stderr)
        if self.errors:
            print(f"{self.errors} of {self._of} rows have an error", file=sys.stderr)

    def _show(self) -> None:
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        left = duration((self._todo - self._done) / rate) if rate else "unknown time"
        self._status.show(f"{self._done} of {self._todo} rows, {rate:.3g} a second, {left} left")

    def _line(self, text: str) -> None:
        self._status.clear()
        print(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3 h 05 min, 2 d 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 100:
        return f"{round(seconds)} s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
