"""A file appears under its name when it is complete, and not before."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from ..errors import PgMlxError
from .folder import sync_entries

PARTIAL = ".partial"
"""The suffix of a hidden file that is not whole."""


def write_whole(target: Path, fill: Callable[[Path], object], replace: bool = True) -> bool:
    """Write a file under another name, make it durable, and give it its name. Returns False if a file with this name is
    there and may not be replaced.

    fill: writes to the path that it is given. Raises PgMlxError if the file cannot be written.
    """
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}{PARTIAL}"
    try:
        fill(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        if replace:
            partial.rename(target)
        else:
            _take_name(partial, target)
        sync_entries(target.parent)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if isinstance(error, FileNotFoundError) and target.exists():
            return replace  # another process has written it meanwhile, and swept up
        raise PgMlxError(f"cannot write {target}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _take_name(partial: Path, target: Path) -> None:
    """Give a file its name. Raises FileExistsError if the name is taken."""
    try:
        target.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        if target.exists():
            raise FileExistsError(target) from None
        partial.rename(target)
