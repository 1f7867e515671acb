"""The page at `/`: its structure, style and scripts, joined into one document when the server starts.

They are files of their own so that each has one idea and an editor knows its language. A browser gets one document,
which loads nothing else. The scripts share one scope, in the order of SCRIPTS.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

_FOLDER = Path(__file__).parent
SCRIPTS = (
    "basics",
    "place",
    "regions",
    "pictures",
    "stage",
    "prompt",
    "camera",
    "server",
    "answer",
    "history",
    "start",
)
"""The page's scripts. Each uses functions of the others, and at once only what stands before it."""


class Page:
    """The document, and the header that protects it."""

    def __init__(self) -> None:
        """Read and join the files."""
        style = _read("page.css")
        script = '"use strict";\n' + "".join(_read(f"{name}.js") for name in SCRIPTS)
        head, between, end = _read("page.html").split("<!-- joined -->")
        self.document = f"{head}<style>{style}</style>{between}<script>{script}</script>{end}".encode()
        """One HTML file."""
        self.policy = (
            f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src 'self'; "
            "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        """Its Content-Security-Policy: it may use its own script and style, by their hashes, and may ask its own server
        only."""


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
