"""pg-mlx worker: a model for other programs, as JSON lines on stdin and stdout."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..errors import InputError, UsageError
from .options import Parser, add_model_options, add_service_options, load_options
from .ranks import add_parallel_options, with_ranks

DESCRIPTION = "Answer a program's requests: JSON lines on stdin and stdout, as docs/protocol.md describes."

EPILOG = """\
The options of the model are defaults: a load message may say otherwise for every one of which it has a field.

It ends when stdin ends, on SIGTERM or after a shutdown message, once what was accepted is answered (after SIGTERM
within 30 seconds; a load is given up); and at once with its parent. What libraries print goes to stderr.

exit code: 0, or 1 if the model failed so that only a new worker can help (with --supervise: if several in a row died
at once), 2 for a wrong input.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The options of this command."""
    p = Parser(program, DESCRIPTION, EPILOG)
    add_model_options(p)
    add_service_options(p)
    p.add_argument(
        "--files",
        action="append",
        metavar="DIR",
        help="folder that pictures may be read from by path (repeatable; default: all)",
    )
    p.add_argument(
        "--supervise",
        action="store_true",
        help="replace a worker that crashes: only the requests in flight fail, and the model is loaded again",
    )
    add_parallel_options(p)
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    """Answer until stdin ends; returns the exit code. Raises PgMlxError."""
    parent = os.getppid()  # before anything that takes time, in which it may die
    args = parser(program).parse_args(argv)
    if args.supervise and args.parallel:
        raise UsageError("--supervise cannot replace one process of several: start mlx.launch again instead")
    return with_ranks(args, lambda: _work(args, argv, parent))


def _work(args: argparse.Namespace, argv: list[str], parent: int) -> int:
    folders = [Path(folder) for folder in args.files] if args.files else None
    for folder in folders or ():
        if not folder.is_dir():
            raise InputError(f"--files {folder} is not a folder")

    from ..serving.worker.processes import guarded_pipes

    pipes = guarded_pipes()
    if args.supervise:
        from ..client.frozen import is_frozen, worker_command
        from ..serving.worker.supervisor import Supervisor

        flags = [flag for flag, on in (("-I", sys.flags.isolated), ("-B", sys.flags.dont_write_bytecode)) if on]
        again = [argument for argument in argv if argument != "--supervise"]
        start = worker_command() if is_frozen() else [sys.executable, *flags, "-m", "pg_mlx", "worker"]
        return Supervisor(*pipes, parent, [*start, *again]).run()

    from ..demo import CHECKPOINT
    from ..serving.service.limits import Limits
    from ..serving.worker.worker import Worker

    limits = Limits(
        batch_size=args.batch_size, queue=args.queue, memory_bytes=args.memory_limit, prefix_tokens=args.max_prefix
    )
    return Worker(*pipes, parent, limits, folders, load_options(args), args.model or CHECKPOINT).run()
