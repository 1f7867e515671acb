"""What the commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from ..errors import InputError


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


def load_progress() -> tuple[Callable[[int, int], None], Callable[[], None]]:
    """A progress bar on stderr for loading, silent where stderr is no terminal, and its closer."""
    from tqdm import tqdm

    bar = tqdm(desc="loading", unit="module", leave=False, disable=not sys.stderr.isatty(), file=sys.stderr)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show, bar.close
