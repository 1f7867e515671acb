"""Files outside docs/ on the site: each at project/ and its path in the repository."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

PROJECT = "project"
ALWAYS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "demo/README.md")
"""Files that the navigation has."""

_LINK = re.compile(r"\[([^\]\[]*)\]\(([\w./-]+)((?:#[\w-]*)?)\)")


def found(root: Path) -> dict[str, Path]:
    """The files that pages of the repository lead to, those that lead from them included, by their path on the site."""
    waiting = [*ALWAYS, *(path.relative_to(root).as_posix() for path in root.glob("docs/**/*.md"))]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.endswith(".md"):
            continue
        for _, target, _ in _LINK.findall((root / path).read_text(encoding="utf-8")):
            other = normpath(join(dirname(path), target))
            if other not in seen and not other.startswith("docs/") and (root / other).is_file():
                seen.add(other)
                waiting.append(other)
    return {place(path): root / path for path in sorted(seen) if not path.startswith("docs/")}


def place(path: str) -> str:
    """Where a file of the repository is on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{PROJECT}/{path}"


@cache
def title(page: Path) -> str:
    """The first heading of a page."""
    heading = re.search(r"^# (.+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return heading[1] if heading else page.name


def relinked(text: str, page: str, root: Path) -> str:
    """The text of a page, with links that lead to places on the site in place of those in the repository. A link whose
    words are the name of its file gets the title of that page instead.

    page: the path of the page on the site. Links that lead to no file stay, so that mkdocs reports them."""
    inside = page.startswith(f"{PROJECT}/")
    here = page.removeprefix(f"{PROJECT}/") if inside else f"docs/{page}"

    def moved(link: re.Match[str]) -> str:
        words, path, rest = link.groups()
        target = normpath(join(dirname(here), path))
        if not (root / target).is_file():
            return link[0]
        if words == path.removeprefix("../").removeprefix("docs/") and words.endswith(".md"):
            words = title(root / target)
        return f"[{words}]({relpath(place(target), dirname(page) or '.')}{rest})"

    return _LINK.sub(moved, text)
