"""Writing a folder whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError


@contextlib.contextmanager
def whole_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """A temporary sibling of `target` to write into, which takes its name only if nothing went wrong.

    Raises InputError if the target exists, unless `force`; then the old folder lives until the new one is complete.
    A process that is killed leaves its sibling behind; the next run for the same target removes it.
    """
    if target.is_symlink():
        target = target.resolve()  # the link stays, and the new folder is written where the old one is
    if not target.parent.is_dir():
        raise InputError(f"no such folder: {target.parent}")
    _clean_up(target)
    if target.exists() and not force:
        raise InputError(f"{target} exists already; choose another name, or --force to replace it")
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; only a folder can be replaced")
    partial, replaced = (target.parent / f".{target.name}.{state}-{os.getpid()}" for state in ("partial", "replaced"))
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        if target.exists():
            if not force:
                raise InputError(f"{target} has appeared meanwhile; choose another name, or --force to replace it")
            target.rename(replaced)
        partial.rename(target)
        _sync(target.parent)
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        for left in (partial, replaced):
            shutil.rmtree(left, ignore_errors=True)


def _clean_up(target: Path) -> None:
    """Remove what killed processes left; if one died between its two renames, give the old folder its name back."""
    for state in ("replaced", "partial"):
        for left in target.parent.glob(f".{glob.escape(target.name)}.{state}-*"):
            if _is_alive(left.name.rpartition("-")[2]):
                continue
            if state == "replaced" and not target.exists():
                left.rename(target)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    return int(pid) != os.getpid()


def _sync(folder: Path) -> None:
    """Make the folder's entries and files durable before it takes its name."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
