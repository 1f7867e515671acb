"""What the commands share."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

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
