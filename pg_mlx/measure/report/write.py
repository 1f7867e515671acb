"""Writing a report: FILE.json and FILE.md, both or neither."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec

from ...errors import InputError, PgMlxError
from .page import page, tidy
from .structs import MacReport


def targets(text: str) -> tuple[Path, Path]:
    """The paths of JSON and page. Raises InputError if they cannot be written, or exist."""
    file = Path(text).expanduser()
    if file.suffix != ".json":
        raise InputError(f"--report {text}: give a name that ends in .json; the page gets the same name with .md")
    if not file.parent.is_dir():
        raise InputError(f"--report {text}: no such folder: {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"--report {text}: {file.parent} cannot be written to")
    both = file, file.with_suffix(".md")
    for path in both:
        if os.path.lexists(path):
            raise InputError(f"--report {text}: {path} exists already; choose another name")
    return both


def write(report: MacReport, text: str) -> tuple[Path, Path]:
    """Write JSON and page where --report says, and return their paths. Raises InputError if one of them has appeared
    meanwhile, and PgMlxError if they cannot be written."""
    both = targets(text)
    contents = json.dumps(tidy(msgspec.to_builtins(report)), indent=1, allow_nan=False) + "\n", page(report)
    partial = [path.with_name(f".{path.name}.partial-{os.getpid()}") for path in both]
    named: list[Path] = []
    try:
        for path, content in zip(partial, contents, strict=True):
            with path.open("x", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        targets(text)
        for path, target in reversed(list(zip(partial, both, strict=True))):  # the JSON last: then both are there
            path.rename(target)
            named.append(target)
    except OSError as error:
        for path in named:
            path.unlink(missing_ok=True)
        raise PgMlxError(f"the report could not be written: {error.strerror}") from None
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return both
