"""The blocks of code on a page, and what comments above them say.

A comment stands right above its block, invisible on the page:

    <!-- not run: REASON -->         why a test cannot run the block
    <!-- shorter: TEXT => OTHER -->  the test runs OTHER in place of TEXT, which would take long; repeatable
    <!-- before: CODE -->            Python that the test runs first: what a reader has already
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

COMMANDS = (
    *("python", "python3", "python3.11", "pip", "pg-mlx", "curl", "sh", "uv", "uvx", "pipx", "export", "mlx.launch"),
    *(
        "for",
        "if",
        "while",
        "ssh",
        "sbatch",
        "ray",
        "docker",
        "launchctl",
        "pyinstaller",
        "mkdocs",
        "ruff",
        "open",
        "i=0",
    ),
    *("brew", "hf", "node", "npm", "swift", "swiftc", "cat", "find", "cd", "git", "source"),
)
"""Words with which the line of a shell begins."""

_COMMENT = re.compile(r"<!--\s*(not run|shorter|before):\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code as it stands on a page."""

    page: str
    line: int
    kind: str
    """python, shell, or shown: data, output and drawings, which nobody runs."""
    text: str
    reason: str = ""
    """Why it is not run; empty if it is."""
    shorter: tuple[tuple[str, str], ...] = ()
    before: str = ""

    @property
    def name(self) -> str:
        """Where it is: docs/batch.md:9."""
        return f"{self.page}:{self.line}"

    @property
    def to_run(self) -> str:
        """The text with what the comments replace. Raises ValueError if a text to replace is not there."""
        text = self.text
        for old, new in self.shorter:
            if old not in text:
                raise ValueError(f"{self.name}: {old!r} of the comment is not in the block")
            text = text.replace(old, new)
        return text


def blocks_of(page: str, text: str) -> list[Block]:
    """All blocks of a page, fenced or indented, in order."""
    found, comments, lines, at = [], list[tuple[str, str]](), text.splitlines(), 0
    while at < len(lines):
        line, start = lines[at], at
        if fence := re.match(r"( *)(`{3,})\s*(\w*)(.*)", line):
            at = next(end for end in range(at + 1, len(lines)) if lines[end].strip() == fence[2])
            body = [row.removeprefix(fence[1]) for row in lines[start + 1 : at]]
            found.append(_block(page, start + 1, fence[3], "\n".join(body), comments))
            comments, at = [], at + 1
        elif line.startswith("    ") and (at == 0 or not lines[at - 1].strip()):
            while at < len(lines) and (lines[at].startswith("    ") or not lines[at].strip()):
                at += 1
            body = [row[4:] for row in lines[start:at]]
            found.append(_block(page, start + 1, "", "\n".join(body).rstrip(), comments))
            comments = []
        elif line.lstrip().startswith("<!--"):
            while "-->" not in lines[at]:
                at += 1
            at += 1
            comments += _COMMENT.findall("\n".join(lines[start:at]))
        else:
            comments = comments if not line.strip() else []
            at += 1
    return found


def _block(page: str, line: int, language: str, text: str, comments: list[tuple[str, str]]) -> Block:
    said = {kind: [value for name, value in comments if name == kind] for kind in ("not run", "shorter", "before")}
    shorter = tuple((old.strip(), new.strip()) for old, _, new in (pair.partition("=>") for pair in said["shorter"]))
    return Block(page, line, _kind(language, text), text, " ".join(said["not run"]), shorter, "\n".join(said["before"]))


def _kind(language: str, text: str) -> str:
    if language in ("python", "py"):
        return "python"
    if language in ("sh", "bash", "shell", "console"):
        return "shell"
    if language:
        return "shown"
    rows = [row for row in text.splitlines() if row.strip() and not row.startswith("#")]
    try:
        words = shlex.split(rows[0], comments=True) if rows else []
    except ValueError:  # a quote that ends on another line
        words = rows[0].split()
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    return "shell" if words and words[0].rstrip(";") in COMMANDS else "shown"
