"""The commands: argument parsing and output, nothing else. Nothing heavy is imported until it is needed."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

from ..errors import PgMlxError

COMMANDS = {
    "generate": "ask about pictures",
    "convert": "convert and quantize a checkpoint",
    "serve": "answer over HTTP, as OpenAI's API and on a page",
    "worker": "answer a program's requests: JSON lines on stdin and stdout",
    "bench": "time each stage on this machine",
    "doctor": "check that this machine computes right",
}


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
    if not argv or argv[0] not in COMMANDS:
        return _overview(argv)
    program = program or f"pg-mlx {argv[0]}"
    try:
        command = importlib.import_module(f".{argv[0]}", __name__)
        code = command.run(argv[1:], program)
        sys.stdout.flush()
        return code
    except PgMlxError as error:
        if "--debug" in argv:
            raise
        return _fail(program, str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains again at exit
        return _fail(program, "stdout was closed before the answer was complete", 1)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", 130)
    except Exception as error:
        if "--debug" in argv:
            raise
        what = " ".join(f"{type(error).__name__}: {error}".split())
        return _fail(program, f"unexpected failure: {what} (--debug shows where)", 1)


def _overview(argv: list[str]) -> int:
    wanted = bool(argv) and argv[0] in ("-h", "--help")
    if argv and not wanted:
        return _fail("pg-mlx", f"no command {argv[0]!r}; there is: {', '.join(COMMANDS)}", 2)
    lines = ["usage: pg-mlx COMMAND ...", "", *(f"  {name:<10} {about}" for name, about in COMMANDS.items())]
    print("\n".join([*lines, "", "pg-mlx COMMAND --help explains."]), file=sys.stdout if wanted else sys.stderr)
    return 0 if wanted else 2


def _fail(program: str, message: str, code: int) -> int:
    print(f"{program}: error: {message}", file=sys.stderr)
    return code
