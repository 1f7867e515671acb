"""What the commands share."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ..errors import InputError
from ..memory.size import parse_size


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, and which never guesses abbreviated flags."""

    def __init__(self, program: str, description: str, epilog: str):
        super().__init__(
            prog=program,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help explains)")


def add_memory_options(p: argparse._ActionsContainer) -> None:
    """Those of a command that loads a model."""
    p.add_argument(
        "--memory",
        metavar="SIZE",
        help="on a Linux CPU: use so much, as 8GB, to hold float32 copies of packed weights, which answer faster",
    )
    p.add_argument(
        "--layers-at-once",
        type=int,
        metavar="N",
        help="give way to the screen after N layers of a picture or prompt (for 896 pixels on small chips)",
    )


def check_memory_options(args: argparse.Namespace) -> None:
    """Before anything is loaded. Raises InputError."""
    for name in ("memory", "max_memory", "memory_limit"):
        size(args, name)
    if args.layers_at_once is not None and args.layers_at_once < 1:
        raise InputError(f"--layers-at-once is {args.layers_at_once}, but must be 1 or more")


def size(args: argparse.Namespace, name: str) -> int | None:
    """Bytes of an option, None if it was not given. Raises InputError."""
    text = getattr(args, name, None)
    try:
        return None if text is None else parse_size(text)
    except InputError as error:
        raise InputError(f"--{name.replace('_', '-')}: {error}") from None


def load_progress() -> tuple[Callable[[int, int], None], Callable[[], None]]:
    """A progress bar on stderr for loading, silent where stderr is no terminal, and its closer.

    It comes after half a second: a small model is there before the bar is imported.
    """
    start, bars = time.perf_counter(), list[Any]()

    def show(done: int, total: int) -> None:
        if not bars and sys.stderr.isatty() and time.perf_counter() > start + 0.5:
            from tqdm import tqdm

            bars.append(tqdm(desc="loading", unit="module", leave=False, file=sys.stderr, total=total))
        for bar in bars:
            bar.update(done - bar.n)

    def close() -> None:
        for bar in bars:
            bar.close()

    return show, close
