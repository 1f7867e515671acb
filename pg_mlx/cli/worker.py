"""pg-mlx worker: a model for other programs, as JSON lines on stdin and stdout."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..errors import InputError
from .options import Parser, add_memory_options, check_memory_options, size

DESCRIPTION = "Answer a program's requests: JSON lines on stdin and stdout, as docs/protocol.md tells."

EPILOG = """\
It ends when stdin ends, on SIGTERM or after a shutdown message, once what was accepted is answered; and at once with
its parent. What libraries print goes to stderr.

exit code: 0, or 1 if the model failed so that only a new worker can help (with --supervise: if several in a row died
at once), 2 for a wrong input.
"""


def parser(program: str) -> argparse.ArgumentParser:
    p = Parser(program, DESCRIPTION, EPILOG)
    p.add_argument("--batch-size", type=int, default=8, metavar="N", help="answers computed at a time (default: 8)")
    p.add_argument("--queue", type=int, default=64, metavar="N", help="requests that may wait (default: 64)")
    p.add_argument("--memory-limit", metavar="SIZE", help="what the model and its answers may take, as 6GB")
    add_memory_options(p)
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
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    parent = os.getppid()  # before anything that takes time, in which it may die
    args = parser(program).parse_args(argv)
    for name, least, most in (("batch_size", 1, 256), ("queue", 1, 100_000)):
        if not least <= getattr(args, name) <= most:
            raise InputError(f"--{name.replace('_', '-')} must be from {least} to {most}")
    check_memory_options(args)
    limit = size(args, "memory_limit")
    folders = [Path(folder) for folder in args.files] if args.files else None
    for folder in folders or ():
        if not folder.is_dir():
            raise InputError(f"--files {folder} is no folder")

    from ..serving.worker.processes import guarded_pipes

    pipes = guarded_pipes()
    if args.supervise:
        from ..serving.worker.supervisor import Supervisor

        flags = [flag for flag, on in (("-I", sys.flags.isolated), ("-B", sys.flags.dont_write_bytecode)) if on]
        again = [argument for argument in argv if argument != "--supervise"]
        return Supervisor(*pipes, parent, [sys.executable, *flags, "-m", "pg_mlx", "worker", *again]).run()

    import mlx.core as mx

    from ..memory.residency import check_copies
    from ..serving.service.limits import Limits
    from ..serving.worker.worker import Worker

    if args.memory is not None:
        check_copies(mx.float32)
    limits = Limits(batch_size=args.batch_size, queue=args.queue, memory_bytes=limit)
    loading = {"memory": args.memory, "layers_at_once": args.layers_at_once}
    return Worker(*pipes, parent, limits, folders, loading).run()
