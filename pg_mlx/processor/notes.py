"""What somebody who asks about a picture should know, though it could be read."""

from __future__ import annotations

import sys
import warnings
from typing import TextIO


class PictureWarning(UserWarning):
    """Not the whole picture was read: one of several pages, or a smaller copy."""


def print_as_lines() -> None:
    """Print each PictureWarning as one line on stderr, every time. For commands. Others stay as they are."""
    show = warnings.showwarning

    def shown(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, PictureWarning):
            show(message, category, filename, lineno, file, line)
        elif (stream := file or sys.stderr) is not None:
            print(f"note: {message}", file=stream)

    warnings.showwarning = shown
    warnings.simplefilter("always", PictureWarning)
