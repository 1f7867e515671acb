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

    def __init__(self) -> None:
        """Asks the terminal what it can. Says so on stderr if stdout is not a terminal."""
        self.protocol = terminal.protocol()
        self.terminal = sys.stdout.isatty()
        self._opened = 0
        if not self.terminal:
            print("--show needs a terminal, which stdout is not; --annotate OUT writes the pictures", file=sys.stderr)

    def add(self, answer: Success) -> None:
        """Show one answer."""
        if not self.terminal or (not self.protocol and self._opened > _WINDOWS):
            return
        from ..regions.draw import annotate

        self.picture(annotate(answer.item.load(), answer.generation.regions), answer.item.name)

    def picture(self, image: Image.Image, name: str) -> None:
        """Show a picture. name: of the file, if a viewer opens it."""
        if self.protocol:
            sys.stdout.flush()
            sys.stdout.buffer.write(terminal.encoded(image, self.protocol))
            sys.stdout.buffer.flush()
            return
        self._opened += 1
        if self._opened > _WINDOWS:
            print(f"only {_WINDOWS} pictures were opened; --report out.html shows all", file=sys.stderr)
        elif not open_picture(image, name):
            self._opened = _WINDOWS + 1
            print("no way to show pictures was found here; --annotate OUT writes them", file=sys.stderr)


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
