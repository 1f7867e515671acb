"""What starts a worker: Python, or an app that contains its Python and starts itself (made by PyInstaller, py2app,
Briefcase, cx_Freeze or Nuitka)."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path

from ..errors import InputError

WORKER = "--pg-mlx-worker"
"""The first argument with which a frozen app starts itself as a worker."""

_called = False


def serve_if_worker() -> None:
    """Turn this process into a worker, and never return, if a Client of a frozen app has started it. Otherwise return
    at once. A frozen app calls it first of all, before it opens a window or reads its arguments."""
    global _called
    _called = True
    if sys.argv[1:2] == [WORKER]:
        cli = importlib.import_module("pg_mlx.cli")  # by name: the command line stands above its clients
        cli.command(["worker", *sys.argv[2:]])


def is_frozen() -> bool:
    """Whether this program is an app that contains its Python. Briefcase sets no mark, but the name is the app's."""
    marked = hasattr(sys, "frozen") or hasattr(sys.modules.get("__main__"), "__compiled__")
    return marked or not re.match("python|pypy|graalpy", Path(sys.executable).name, re.IGNORECASE)


def worker_command() -> list[str]:
    """What starts a worker from this program: this Python, or in a frozen app the app itself. Raises InputError where
    nothing is known to do so.

    A frozen app has no Python to start: `sys.executable -m pg_mlx` would start the whole app again, and that one
    another, without end. So it must have called `serve_if_worker`.
    """
    program = sys.executable
    if getattr(sys, "frozen", None) == "macosx_app":  # py2app's: its sys.executable is a Python beside the app
        program = os.environ.get("EXECUTABLEPATH", program)
    if not program or not Path(program).exists():
        raise InputError("sys.executable names no program to start a worker with: give Client(command=...)")
    if not is_frozen():
        return [program, "-m", "pg_mlx", "worker"]
    if not _called:
        raise InputError(
            "a frozen app has no Python to start a worker with: call pg_mlx.client.serve_if_worker() as the first "
            "thing in the app, or give Client(command=...); docs/embedding.md explains it"
        )
    return [program, WORKER]
