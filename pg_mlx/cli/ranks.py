"""A command whose model lies on several machines: rank 0 does what the command does, the others help it."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from ..errors import InputError, UsageError
from ..parallel.launched import launched_rank
from ..parallel.shares import MODES, parse_shares
from .options import bounded


def add_parallel_options(parser: argparse.ArgumentParser) -> None:
    """How a model is shared by the machines that mlx.launch has started."""
    p = parser.add_argument_group("one model on several machines (docs/parallel.md)")
    p.add_argument(
        "--parallel",
        choices=MODES,
        help="under mlx.launch: each machine holds some layers (pipeline), or a part of every layer (tensor)",
    )
    p.add_argument(
        "--shares", type=_shares, metavar="A:B", help="what each machine holds, in proportion, as 10:6 (default: equal)"
    )
    p.add_argument(
        "--silence",
        type=bounded(1, 86400, float),
        default=60.0,
        metavar="S",
        help="give up when another machine says nothing for so many seconds (default: 60)",
    )
    p.add_argument("--dry-run", action="store_true", help="print what each machine would hold; reads no weights")


def is_said_by_rank_0(argv: Sequence[str]) -> bool:
    """Whether rank 0 of a shared model has the same options, and prints what is wrong with them."""
    asked = any(argument.partition("=")[0] in ("--parallel", "--shares") for argument in argv)
    return asked and (launched_rank() or 0) > 0


def with_ranks(args: argparse.Namespace, work: Callable[[], int]) -> int:
    """The exit code of a command's work; without --parallel nothing else happens here.

    On rank 0 args.team becomes what LoadOptions needs, and the other ranks end with the work. They themselves print
    nothing on stdout. Raises InputError if there are no other ranks, or options do not go together.
    """
    args.team = None
    if args.parallel is None:
        given = [name for name, on in (("--shares", args.shares), ("--dry-run", args.dry_run)) if on]
        if given:
            raise UsageError(f"{given[0]} needs --parallel")
        return work()
    if args.dry_run:
        return _dry_run(args)
    from ..parallel.link import join

    link = join(args.silence)
    if link.rank:
        from ..parallel.follower import Follower

        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; rank 0 decides
        Follower(link).run()
        return 0
    from ..parallel.leader import Leader

    args.team = Leader(link, args.parallel, args.shares)
    try:
        return work()
    finally:
        args.team.stop()


def _dry_run(args: argparse.Namespace) -> int:
    from ..demo import CHECKPOINT
    from ..memory.size import format_size
    from ..parallel.agreement import LoadRequest, prepare
    from ..parallel.group import processes
    from .options import load_options

    group = processes()
    if group is not None and group.rank():
        return 0
    size = len(args.shares) if args.shares else group.size() if group else 2
    ask = LoadRequest.of(args.model or CHECKPOINT, args.parallel, args.shares, load_options(args))
    for rank in range(size):
        try:
            facts = prepare(ask, rank, size).facts
        except InputError as error:
            raise InputError(f"rank {rank}: {error}") from None
        print(
            f"rank {rank}: {facts.about}; weights {format_size(facts.weight_bytes)}, "
            f"needs {format_size(facts.needed_bytes)} in {facts.dtype}"
        )
    sys.stdout.flush()
    return 0


def _shares(text: str) -> tuple[int, ...]:
    try:
        return parse_shares(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
