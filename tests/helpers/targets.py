"""Targets of a conversion."""

from __future__ import annotations

import shutil
import stat
from functools import partial
from pathlib import Path

import pg_mlx

convert = partial(pg_mlx.convert, q_bits=8, check=False)


def everything(folder: Path) -> dict[str, object]:
    """All that lies below a folder: files with their bytes, links with their targets, not followed."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = str(path.readlink())
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
        else:
            found[str(path.relative_to(folder))] = stat.S_IFMT(path.lstat().st_mode)
    return found


def copied(earlier: Path, target: Path) -> Path:
    return Path(shutil.copytree(earlier, target, symlinks=True))
