"""All answers of a run on one page: --report. One file, which needs no server and loads nothing else."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, TextIO

from ..errors import InputError, PgMlxError
from .writers import Failure, Success, View, describe

if TYPE_CHECKING:
    from ..generation import Generation

SIDE = 480
"""Longest side in pixels of a picture on the page."""
_MARK = b'<meta name="generator" content="pg-mlx gallery">'
_SUFFIXES = (".html", ".htm")
_NAMED = 5
"""Prompts in the title."""


class Gallery(View):
    """Writes the page answer by answer, so that it never holds more than one. The file appears whole, with `close`, or
    not at all."""

    def __init__(self, path: str, prompts: list[str], total: int):
        """total: how many answers are expected. Raises InputError for a path that cannot be meant; a file there is
        replaced only if it is such a page."""
        self._path = Path(path).expanduser()
        self._partial = self._path.with_name(f".{self._path.name}.partial-{os.getpid()}")
        self._prompts, self._total = prompts, total
        self._answered = self._failed = 0
        self._file: TextIO | None = None
        if self._path.suffix.lower() not in _SUFFIXES:
            raise InputError(f"--report {path}: the page is one file, whose name ends with .html")
        if not self._path.parent.is_dir():
            raise InputError(f"--report: no such folder: {self._path.parent}")
        if self._path.exists() and not _is_ours(self._path):
            raise InputError(f"--report: {path} is not a page that --report wrote, so it is not replaced")

    def add(self, answer: Success) -> None:
        """One more answer, at the end of the page. Raises PgMlxError if it cannot be written."""
        self._write(_card(answer))
        self._answered += 1

    def failure(self, failure: Failure) -> None:
        """A picture that has no answer, and why. Raises PgMlxError as `add`."""
        self._write(_failed_card(failure))
        self._failed += 1

    def close(self) -> None:
        """Put the page in its place. Raises PgMlxError if that fails."""
        done = f"{self._answered} of {self._total} answered, {self._failed} failed; written by pg-mlx generate --report"
        self._write(Template(_page()[1]).substitute(summary=escape(done), script=_asset("gallery.js")))
        try:
            assert self._file is not None
            self._file.close()
            self._partial.replace(self._path)
        except OSError as error:
            self.abort()
            raise self._failure(error) from error

    def abort(self) -> None:
        """There will be no page."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            with contextlib.suppress(OSError):
                self._partial.unlink(missing_ok=True)

    def _write(self, text: str) -> None:
        try:
            if self._file is None:
                self._file = self._partial.open("w", encoding="utf-8")
                self._file.write(self._head())
            self._file.write(text)
        except OSError as error:
            self.abort()
            raise self._failure(error) from error

    def _head(self) -> str:
        from ..regions.html import printable

        named = [" ".join(prompt.split()) or "an empty prompt" for prompt in self._prompts[:_NAMED]]
        more = [f"{len(self._prompts) - _NAMED} more"] * (len(self._prompts) > _NAMED)
        title = escape(printable(" · ".join(named + more)))
        digest = hashlib.sha256(_asset("gallery.js").encode()).digest()
        script_hash = f"sha256-{base64.b64encode(digest).decode()}"
        return Template(_page()[0]).substitute(title=title, script_hash=script_hash)

    def _failure(self, error: OSError) -> PgMlxError:
        return PgMlxError(f"cannot write {self._path}: {error.strerror or error}")


def _card(answer: Success) -> str:
    from ..regions.html import chip, drawn, img, spoken

    generation, item = answer.generation, answer.item
    regions = generation.regions
    description = f"{item.name} with {spoken(regions)}" if regions else item.name
    picture = img(drawn(item.load(), regions, SIDE), description, attributes=' loading="lazy" decoding="async"')
    scores = [region.score for region in regions if region.score is not None]
    facts = {
        "name": item.source,
        "labels": json.dumps(list(dict.fromkeys(region.label for region in regions))),
        "found": str(len(regions)),
        "score": f"{max(scores):.4f}" if scores else "",
    }
    chips = "".join(f"<li>{chip(region)}</li>" for region in regions)
    words = _words(generation, f'<ul class="regions">{chips}</ul>' if regions else "")
    return _item(facts, item.source, item.prompt, words, picture)


def _words(generation: Generation, chips: str) -> str:
    from ..regions.html import printable

    text = escape(printable(generation.text))
    if chips:
        text = f"{chips}<details><summary>the model's words</summary><pre>{text}</pre></details>"
    else:
        text = f'<p class="text">{text if text.strip() else "nothing found"}</p>'
    cut = "" if generation.finish_reason == "stop" else f'<p class="quiet">ended by: {generation.finish_reason}</p>'
    return text + cut


def _failed_card(failure: Failure) -> str:
    from ..regions.html import printable

    facts = {"name": failure.item.source, "labels": "[]", "found": "0", "score": ""}
    reason = f'<p class="bad">{escape(printable(describe(failure)))}</p>'
    return _item(facts, failure.item.source, failure.item.prompt, reason, "")


def _item(facts: dict[str, str], name: str, prompt: str, words: str, picture: str) -> str:
    from ..regions.html import printable

    data = "".join(f' data-{key}="{escape(printable(value))}"' for key, value in facts.items())
    heading = f"<h2>{escape(printable(name))}</h2>"
    asked = f'<p class="quiet">{escape(printable(" ".join(prompt.split())))}</p>' if prompt.strip() else ""
    return f"<li{data}><figure>{picture}<figcaption>{heading}{asked}{words}</figcaption></figure></li>\n"


def _page() -> tuple[str, str]:
    """What stands before the answers, and behind."""
    head, _, tail = _asset("gallery.html").partition("$answers\n")
    return head, tail


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _MARK in file.read(1000)
    except OSError:
        return False
