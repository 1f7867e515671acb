"""The navigation of the site, from docs/index.md."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

HOME = "index.md"
PROJECT = ("project/README.md", "project/CONTRIBUTING.md", "project/CHANGELOG.md")
COMMANDS_IN = "Use it"
"""The part of the index that lists the commands, too."""


def of(index: str, commands: Iterable[str]) -> list[Any]:
    """mkdocs' `nav`: home, then a tab for each part of the index (`## Title`) with the pages to which its list leads.

    index: the text of docs/index.md. commands: pages of the commands, as `commands/generate.md`."""
    tabs: list[Any] = [{"Home": HOME}]
    for title, body in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", index, re.MULTILINE | re.DOTALL):
        pages: list[Any] = re.findall(r"^- \[[^\]]+\]\(([\w-]+\.md)\)", body, re.MULTILINE)
        if title == COMMANDS_IN:
            pages.append({"Commands": list(commands)})
        if pages:
            tabs.append({title: pages})
    return [*tabs, {"Project": [*PROJECT, "project/benchmarks/README.md", "project/demo/README.md"]}]


def anchor(heading: str, separator: str = "-") -> str:
    """The name that GitHub gives a heading, by which pages lead to it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", separator)
