"""Answers for people to look at: in the terminal where it shows pictures, else in the system's viewer."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import terminal
from .writers import Success, View

if TYPE_CHECKING:
    from PIL import Image

_WINDOWS = 4
"""Pictures that are opened in windows; more would be a nuisance."""


class Show(View):
    """What --show asks for: each answer's picture, drawn, behind its text."""

    def __init__(self, instead: str = "--annotate OUT writes the pictures"):
        """Asks the terminal what it can. Says so on stderr if stdout is not a terminal. instead: what else helps."""
        self.protocol = terminal.protocol()
        self.terminal = sys.stdout.isatty()
        self._instead = instead
        self._left = _WINDOWS
        if not self.terminal:
            print(f"a picture is shown on a terminal only, which stdout is not; {instead}", file=sys.stderr)

    def add(self, answer: Success) -> None:
        """Show one answer."""
        if not self.terminal or self._left < 0:
            return
        if not self.protocol:
            self._left -= 1
        if self._left < 0:
            print(f"only {_WINDOWS} pictures were opened; --report out.html shows all", file=sys.stderr)
            return
        from ..regions.draw import annotate

        if not self.picture(annotate(answer.item.load(), answer.generation.regions), answer.item.name):
            self._left = -1

    def picture(self, image: Image.Image, name: str) -> bool:
        """Show a picture; False, and a line on stderr, if there is no way to. name: of the file, for a viewer."""
        if not self.terminal:
            return False
        if self.protocol:
            sys.stdout.flush()
            sys.stdout.buffer.write(terminal.encoded(image, self.protocol))
            sys.stdout.buffer.flush()
            return True
        if open_picture(image, name):
            return True
        print(f"no way to show pictures was found here; {self._instead}", file=sys.stderr)
        return False


def open_picture(image: Image.Image, name: str) -> bool:
    """Write the picture into the system's folder for such files, and open it in the viewer; False if there is none."""
    program = _opener()
    if program is None:
        return False
    path = Path(tempfile.mkdtemp(prefix="pg-mlx-")) / f"{name}.png"
    image.save(path)
    silent: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        subprocess.Popen([program, path], start_new_session=True, **silent)
    except OSError:
        path.unlink()
        path.parent.rmdir()
        return False
    return True


def _opener() -> str | None:
    """The program that opens a file in its viewer; None without a screen."""
    if sys.platform == "darwin":
        return "open"
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return "xdg-open" if screen else None
