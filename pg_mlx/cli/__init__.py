"""The commands: argument parsing and output, nothing else. Nothing heavy is imported until it is needed."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from typing import NoReturn

from .. import __version__
from ..errors import PgMlxError, UsageError
from ..ops.watchdog import explained

COMMANDS = {
    "generate": "ask about pictures",
    "chat": "ask about a picture, question after question",
    "batch": "ask about very many pictures, on one machine or several",
    "train": "fine-tune a model on your pictures",
    "eval": "score models and adapters on examples",
    "convert": "convert and quantize a checkpoint",
    "serve": "answer over HTTP, as OpenAI's API and on a page",
    "worker": "answer a program's requests: JSON lines on stdin and stdout",
    "bench": "time each stage on this machine",
    "doctor": "check that this machine computes right",
    "completion": "print a script with which a shell completes options",
}

SERVING = ("serve", "worker")
"""Commands that look after stdout themselves."""

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF, errno.EFBIG)


def command(argv: list[str] | None = None, program: str | None = None) -> NoReturn:
    """Run a command and end the process with its exit code."""
    try:
        from .interrupts import spare_imports

        spare_imports()
        code = main(argv, program)
    except KeyboardInterrupt:
        code = _fail("pg-mlx", "interrupted", 130)
    except Exception:  # with --debug
        import traceback

        traceback.print_exc()
        code = 1

    if "mlx.core" in sys.modules:
        from ..ops import device

        device.finish()

    from ..threads import leave

    leave(code)


def main(argv: list[str] | None = None, program: str | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for a wrong input, 1 for a failure, 130 for Ctrl-C.

    Every failure is one line on stderr, unless --debug asks for the traceback.
    """
    argv = sys.argv[1:] if argv is None else argv
    _reserve_streams()
    if len(argv) > 1 and argv[0] == "help":
        argv = [argv[1], "--help"]
    if not argv or argv[0] not in COMMANDS:
        return _overview(argv)
    program = program or f"pg-mlx {argv[0]}"
    if sys.stdout is None and argv[0] not in SERVING:
        return _fail(program, "stdout is closed, so there is nowhere to write an answer", 1)
    try:
        command = importlib.import_module(f".{argv[0]}", __name__)
        code = command.run(argv[1:], program)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except PgMlxError as error:
        if isinstance(error, UsageError):
            from .ranks import is_said_by_rank_0

            if is_said_by_rank_0(argv):
                return 0  # mlx.launch would end rank 0 before it has said so
        if "--debug" in argv:
            raise
        return _fail(program, str(error), error.exit_code)
    except BrokenPipeError:
        _drop_stdout()
        return _fail(program, "stdout was closed before the answer was complete", 1)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except Exception as error:
        if "--debug" in argv:
            raise
        if isinstance(error, OSError) and error.errno in _CANNOT_WRITE and error.filename is None:
            _drop_stdout()
            return _fail(program, f"the answer could not be written to stdout: {error.strerror}", 1)
        return _fail(program, f"unexpected failure: {explained(error)} (--debug shows where)", 1)


def _reserve_streams() -> None:
    """Open the null device for every closed standard stream. Otherwise the next file that is opened would get its
    number, and then what is meant for stderr."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123  # until the process ends


def _drop_stdout() -> None:
    """Write no more to stdout, or Python complains again at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _overview(argv: list[str]) -> int:
    if argv and argv[0] in ("--version", "-V", "version"):
        print(f"pg-mlx {__version__}")
        return 0
    wanted = bool(argv) and argv[0] in ("-h", "--help", "help")
    if argv and not wanted:
        return _fail("pg-mlx", f"no command {argv[0]!r}; there is: {', '.join(COMMANDS)}", 2)
    lines = ["usage: pg-mlx COMMAND ...", "", *(f"  {name:<11} {about}" for name, about in COMMANDS.items())]
    print("\n".join([*lines, "", "pg-mlx COMMAND --help explains."]), file=sys.stdout if wanted else sys.stderr)
    return 0 if wanted else 2


def _fail(program: str, message: str, code: int) -> int:
    print(f"{program}: error: {message}", file=sys.stderr)
    return code
