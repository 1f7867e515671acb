"""Two folders exchange their names in one step, so that at no moment either name is missing."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

_AT_FDCWD = -100
_EXCHANGE = 2
"""RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS have the same value."""

_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM)
"""What a kernel, a sandbox or a disk answers that does not know how."""


def exchange(one: Path, other: Path) -> bool:
    """Give each of two existing paths, on one disk, the other's name. False if the system or the disk cannot do that;
    then nothing has changed. Raises OSError for any other failure."""
    import ctypes  # here, because only a conversion that replaces a folder needs it

    first, second = os.fsencode(one), os.fsencode(other)
    sys.audit("os.rename", str(one), str(other), -1, -1)  # it is one, for those who watch what a program does
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(first, second, ctypes.c_uint(_EXCHANGE))
        else:
            failed = library.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, ctypes.c_uint(_EXCHANGE))
    except (AttributeError, OSError, TypeError):  # no such function, no such library, or none that can be opened
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))
