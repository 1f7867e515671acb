"""The site is built without a warning, and has what the pages promise."""

from __future__ import annotations

import argparse
import html
import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.paths import ROOT

import pg_mlx
from pg_mlx import batch, client, regions
from pg_mlx.cli import COMMANDS
from tools.site import navigation

TAGS = {
    *("a", "abbr", "article", "aside", "b", "body", "br", "button", "code", "dd", "details", "div", "dl", "dt", "em"),
    *(
        "figcaption",
        "figure",
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "head",
        "header",
        "hr",
        "html",
        "i",
    ),
    *("img", "input", "label", "li", "link", "main", "meta", "nav", "noscript", "object", "ol", "p", "path", "pre"),
    *("script", "section", "small", "span", "strong", "style", "sub", "summary", "sup", "svg", "table", "tbody", "td"),
    *("template", "th", "thead", "title", "tr", "ul"),
}
"""Tags that pages of the site have."""
FETCHED = ("script", "link", "img", "iframe", "source", "object")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Tags(HTMLParser):
    """The tags of a page, and what a browser would fetch for it."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.fetched = set[str](), set[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in FETCHED:
            self.fetched |= {value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")}


def words_of(page: Path) -> str:
    """The text of a page without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = {path: Tags(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 30
    outside = {
        (path.name, link) for path, tags in pages.items() for link in tags.fetched if re.match(r"(\w+:)?//", link)
    }
    assert outside == set()
    styles = "\n".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import\s*)['\"]?(?:https?:)?//", styles) == []


def test_no_token_was_taken_for_a_tag(site: Path) -> None:
    """<loc0001> in plain text would vanish."""
    strange = {
        (str(path.relative_to(site)), tag)
        for path in site.rglob("*.html")
        for tag in Tags(path.read_text(encoding="utf-8")).tags - TAGS
    }
    assert strange == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_command_is_on_its_page(site: Path, name: str) -> None:
    parser: argparse.ArgumentParser = importlib.import_module(f"pg_mlx.cli.{name}").parser(f"pg-mlx {name}")
    words = words_of(site / "commands" / name / "index.html")
    options = [option for action in parser._actions for option in action.option_strings]
    assert [option for option in options if option not in words] == []
    assert "&lt;" not in words and "%(" not in words


def test_every_public_name_is_in_the_reference_with_what_its_docstring_says(site: Path) -> None:
    page = site / "api" / "index.html"
    headings = re.findall(r'<h3 id="[^"]+"[^>]*>(.*?)</h3>', page.read_text(encoding="utf-8"), re.DOTALL)
    shown = {re.sub(r"<[^>]+>|¶|&para;|\s", "", heading) for heading in headings}
    public = {f"pg_mlx.{name}" for name in pg_mlx.__all__ if name != "__version__"}
    public |= {f"pg_mlx.client.{name}" for name in client.__all__ if name != "Image"} | {"pg_mlx.batch.Predictor"}
    assert public - shown == set()
    words = " ".join(words_of(page).split())
    for name in pg_mlx.__all__[1:]:
        first = " ".join((getattr(pg_mlx, name).__doc__ or "").split()).replace("`", "")[:40]
        assert first and first in words, name


@pytest.mark.parametrize("module", [pg_mlx, batch, client, regions], ids=lambda module: module.__name__)
def test_everything_public_has_a_docstring(module: object) -> None:
    missing = []
    for name in module.__all__:  # type: ignore[attr-defined]
        thing = getattr(module, name)
        if name in ("__version__", "Image"):  # a string, and a union of types
            continue
        members = [thing, *(vars(thing).values() if isinstance(thing, type) else ())]
        for member in members:
            member = getattr(member, "__func__", member)  # of a class method
            own = callable(member) or isinstance(member, property)
            if own and not getattr(member, "__name__", "").startswith("_") and not member.__doc__:
                missing.append((name, member))
    assert missing == []


def test_the_index_has_three_parts_and_every_page_is_in_one() -> None:
    tabs = navigation.of((ROOT / "docs" / "index.md").read_text(encoding="utf-8"), ["commands/generate.md"])
    parts = {title: pages for tab in tabs for title, pages in tab.items()}
    assert list(parts) == ["Home", "Use it", "Embed it", "Understand it", "Project"]
    listed = [
        page for title in ("Use it", "Embed it", "Understand it") for page in parts[title] if isinstance(page, str)
    ]
    assert sorted(listed) == sorted({path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"})


def test_headings_have_the_anchors_of_github(site: Path) -> None:
    assert navigation.anchor("`pg-mlx batch`: a row, or two") == "pg-mlx-batch-a-row-or-two"
    assert 'id="a-worker-that-dies"' in (site / "protocol" / "index.html").read_text(encoding="utf-8")
