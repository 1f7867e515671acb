"""Files that are what they seem: no pipes or devices, no stand-ins of Git LFS."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import IO

from ..errors import InputError

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024


def open_regular(path: Path) -> IO[bytes]:
    """A file open to be read. Raises OSError, and InputError for a pipe or a device, which may never end, and for a
    pointer of Git LFS."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for a writer
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is a folder, not a file")
    file = os.fdopen(descriptor, "rb")
    try:
        kind = os.fstat(file.fileno())
        if not stat.S_ISREG(kind.st_mode):
            raise InputError(f"{path} is a pipe or a device, not a file")
        if kind.st_size < _POINTER_BYTES and file.read(len(_POINTER)) == _POINTER:
            raise InputError(
                f"{path} is not the file itself but a pointer of Git LFS to it: "
                f"run `git lfs install && git lfs pull` in {path.parent}"
            )
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


def read_regular(path: Path, most: int) -> bytes:
    """The bytes of a file. Raises OSError, and InputError as `open_regular` and for more than `most` bytes."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise InputError(f"{path} is larger than {most >> 20} MiB, which no such file is")
        return file.read(most)


def refuse_pointer(path: Path) -> None:
    """Raises InputError if the file is a pointer of Git LFS, or no file, or cannot be read."""
    try:
        open_regular(path).close()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path as people give it, with the home folder in place of "~"."""
    with contextlib.suppress(RuntimeError):  # "~nobody/x" has no home to expand to: it stays, and is then not found
        return Path(path).expanduser()
    return Path(path)
