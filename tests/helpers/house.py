"""The package as its source text shows it: modules, imports and classes, and what CONTRIBUTING.md says of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from .paths import ROOT

PACKAGE = ROOT / "pg_mlx"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name: "pg_mlx.ops.device"."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed source of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@cache
def imported(module: str) -> frozenset[tuple[str, str]]:
    """(module, name) for each name that a module imports from the package, anywhere in it: lazily and under
    TYPE_CHECKING, too. The name is empty if a module is imported whole."""
    path, found = modules()[module], set()
    parents = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names if alias.name in modules()}
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                if f"{origin}.{alias.name}" in modules():
                    found.add((f"{origin}.{alias.name}", ""))
                elif origin in modules():
                    found.add((origin, alias.name))
    return frozenset(found)


def graph() -> dict[str, set[str]]:
    """The modules that importing each module runs: those it names, and the packages above them, unless above it too."""
    edges = {}
    for module in modules():
        named = {other for other, _ in imported(module)} - {module}
        above = {".".join(other.split(".")[:depth]) for other in named for depth in range(2, other.count(".") + 1)}
        edges[module] = named | {package for package in above if not f"{module}.".startswith(f"{package}.")}
    return edges


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (strongly connected components of more than one, after Tarjan)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in edges[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in order:
            visit(node)
    return found


# --- CONTRIBUTING.md ----------------------------------------------------------------------------------


def block(kind: str) -> list[str]:
    """The lines of the fenced block of this kind."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0].splitlines()


def tree_paths() -> list[str]:
    """The files and folders of the tree, relative to the repository. Two spaces of indentation are one level."""
    paths, parents = [], list[str]()
    for line in block("tree"):
        depth, entries = (len(line) - len(line.lstrip())) // 2, re.split(r"  +", line.strip())[0].split()
        for entry in entries:
            parents = [*parents[:depth], entry.rstrip("/")]
            paths.append("/".join(parents))
    return paths


def arrows() -> tuple[dict[str, set[str]], set[str]]:
    """What each part may import by the arrows, all that can be reached included; and what every part may import."""
    direct: dict[str, set[str]] = {}
    for line in block("arrows"):
        sources, _, targets = line.partition("->")
        for source in sources.split():
            direct.setdefault(source, set()).update(targets.split())
    every = direct.pop("every")
    reached = {}
    for part in direct:
        seen, following = set[str](), [part]
        while following:
            new = direct.get(following.pop(), set()) - seen
            seen |= new
            following += new
        reached[part] = seen
    return reached, every


def part_of(module: str, parts: set[str]) -> str | None:
    """The part to which a module belongs: the longest dotted name in the arrows that it begins with."""
    name = module.removeprefix("pg_mlx").lstrip(".") or "pg_mlx"
    fitting = [part for part in parts if name == part or name.startswith(f"{part}.")]
    return max(fitting, key=len, default=None)


def claims() -> Iterator[tuple[str, str]]:
    """(path, name) for each `path` `name` in the tables of the page."""
    for line in CONTRIBUTING.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            yield from re.findall(r"`([\w/.]+\.\w+)` `(\w+)`", line)


def questions() -> list[str]:
    """The questions in the table of the page that asks some."""
    text = CONTRIBUTING.read_text(encoding="utf-8")
    return re.findall(r"^\| (\w[^|]*\?) \|.*`\w[\w/.]*` `\w+`", text, re.MULTILINE)
