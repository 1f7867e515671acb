"""Docstrings are plain text. Markdown would take <loc> in them for a tag of HTML and lose it."""

from __future__ import annotations

import re
from typing import Any

import griffe


class PlainText(griffe.Extension):
    """Escapes what is no Markdown in docstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each object that it has read."""
        if obj.docstring:
            obj.docstring.value = escaped(obj.docstring.value)


def escaped(text: str) -> str:
    """The text with &lt; for each < that is not in code: neither between backticks nor in an indented line."""
    pieces = re.split(r"(`[^`]*`|^ {4}.*$)", text, flags=re.MULTILINE)
    return "".join(piece if number % 2 else piece.replace("<", "&lt;") for number, piece in enumerate(pieces))
