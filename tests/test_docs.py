"""What the pages name exists: commands, modules, files, and the places that links lead to."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from helpers.paths import ROOT

from pg_mlx.cli import COMMANDS

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "demo/*.md", "examples/*.md")
    for path in ROOT.glob(pattern)
)
FOLDERS = ("pg_mlx", "tests", "docs", "benchmarks", "demo", "tools", "examples")
pages = pytest.mark.parametrize("page", PAGES)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code_of(page: str) -> str:
    """The blocks and spans of code on a page, one a line."""
    text = text_of(page)
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^ {4,}.*", text, re.MULTILINE)
    return "\n".join([*fenced, *indented, *re.findall(r"`([^`\n]+)`", text)])


def anchor(heading: str) -> str:
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_there_are_pages() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/index.md", "benchmarks/README.md", "demo/README.md"} <= set(PAGES)


@pages
def test_modules_that_are_run_exist(page: str) -> None:
    named = set(re.findall(r"python[\d.]* -m ([\w.]+)", text_of(page)))
    named = {name for name in named if not name.isupper() and not name.split(".")[-1].isupper()}  # NAME is any
    own = {name for name in named if name.split(".")[0] in FOLDERS}
    assert [name for name in sorted(own) if not runs(name)] == []
    assert {name.split(".")[0] for name in named - own} <= {"pip", "pytest", "venv"}


def runs(name: str) -> bool:
    """Whether `python -m name` finds something to run."""
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pages
def test_files_that_are_named_exist(page: str) -> None:
    """Paths from the root of the repository, in code and in prose."""
    names = re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./*-]*\w", text_of(page))
    names += re.findall(r"(?:python[\d.]*|sh) ([\w/]+\.(?:py|sh))\b", code_of(page))
    missing = {name for name in names if not list(ROOT.glob(name)) and not name.endswith("sign.sh")}
    assert sorted(missing) == []


@pages
def test_links_lead_somewhere(page: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, place = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE) if place else []
        if not path.exists() or (place and place not in map(anchor, headings)):
            broken.append(target)
    assert broken == []


@pages
def test_subcommands_exist(page: str) -> None:
    named = re.findall(r"\bpg-mlx ([a-z]+)", code_of(page))
    assert set(named) <= set(COMMANDS)


def test_the_index_has_every_page() -> None:
    index = text_of("docs/index.md")
    linked = set(re.findall(r"\]\(([\w/.-]+\.md)\)", index))
    assert linked >= {Path(page).name for page in PAGES if page.startswith("docs/")} - {"index.md"}


def test_every_benchmark_is_in_the_table() -> None:
    folder = ROOT / "benchmarks"
    scripts = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__main__.py")}
    table = text_of("benchmarks/README.md")
    assert {name for name in scripts if f"`{name}`" not in table} - {"__init__"} == set()
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) <= scripts
    assert all(importlib.util.find_spec(f"benchmarks.{name}") for name in scripts)
