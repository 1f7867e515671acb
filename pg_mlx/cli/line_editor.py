"""Lines that a person types: with history and completion where Python has readline, plain where it has not."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LINES = 1000
"""Lines of history that are kept."""


class LineEditor:
    """Reads lines from stdin. On a terminal they can be edited, and those of earlier sessions come back."""

    def __init__(self, complete: Callable[[str], list[str]], history: Path | None):
        """complete: the whole lines that the beginning of one can become. history: the file for the lines; None for
        none."""
        self._complete, self._history = complete, history
        self._matches: list[str] = []
        self.terminal = sys.stdin.isatty()
        self._readline = _readline() if self.terminal and sys.stdout.isatty() else None
        if self._readline is None:
            return
        self._readline.set_completer(self._match)
        self._readline.set_completer_delims("\n")  # the line is completed as a whole
        libedit = "libedit" in (self._readline.__doc__ or "")  # macOS
        self._readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        self._readline.set_history_length(_LINES)
        if history is not None:
            with contextlib.suppress(OSError):  # there is none, or it is in the other library's form
                self._readline.read_history_file(history)

    def read(self, prompt: str) -> str:
        """The next line, without its end. Raises EOFError at the end of the input, KeyboardInterrupt for Ctrl-C."""
        if self._readline is not None:
            return input(prompt)
        if self.terminal:
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def close(self) -> None:
        """Keep the history, readable for its owner only. A file that cannot be written is no matter."""
        if self._readline is None or self._history is None:
            return
        partial = self._history.with_name(f"{self._history.name}.partial-{os.getpid()}")
        with contextlib.suppress(OSError):
            try:
                os.close(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
                self._readline.write_history_file(partial)
                partial.replace(self._history)
            finally:
                partial.unlink(missing_ok=True)

    def _match(self, line: str, number: int) -> str | None:
        """What readline calls: the next match each time, None behind the last."""
        if number == 0:
            try:
                self._matches = self._complete(line)
            except (OSError, ValueError, RuntimeError):  # a folder that cannot be read, a name that is none
                self._matches = []
        return self._matches[number] if number < len(self._matches) else None


def _readline() -> Any:
    try:
        import readline
    except ImportError:  # Python was built without
        return None
    return readline
