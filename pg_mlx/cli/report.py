"""What stderr says about a run of generate besides single failures: progress, cut answers, and the lines at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .hints import empty_hint
from .pictures import Item
from .progress import StatusLine
from .writers import Failure, Success, describe

if TYPE_CHECKING:
    from ..generation import Stats

_NAMED = 10
"""At most so many answers are named in one line."""


class RunReport:
    """Counts the outcomes of one run, and says on stderr what a person should know of them."""

    def __init__(self, program: str, items: Sequence[Item], prompts: Sequence[str], max_tokens: int):
        """program: its name, which failures begin with."""
        self.answered = self.failed = 0
        self._program, self._all, self._prompts, self._max_tokens = program, len(items), len(prompts), max_tokens
        self._cut = list[str]()
        self._empty = 0
        self._load_s = 0.0
        self._began, status = time.perf_counter(), StatusLine()
        seen = status.terminal and sys.stdout.isatty()  # the answers themselves are
        self._status = status if len(items) > 1 and not seen else None

    def answer(self, answer: Success) -> None:
        """An answer is complete."""
        self.answered += 1
        self._load_s = answer.generation.stats.load_s
        if answer.generation.finish_reason == "length":
            prompt = f" ({' '.join(answer.item.prompt.split())})" if self._prompts > 1 else ""
            self._cut.append(answer.item.source + prompt)
        elif not answer.generation.text.strip() and answer.generation.finish_reason == "stop":
            self._empty += 1
        self._show()

    def failure(self, failure: Failure) -> None:
        """An item has no answer: one line that says why."""
        self.failed += 1
        self._clear()
        print(f"{self._program}: {describe(failure)}", file=sys.stderr)
        self._show()

    def summary(self, stats: Stats) -> None:
        """One line: how long each stage of one answer took."""
        self._clear()
        print(stats.summary(), file=sys.stderr)

    def close(self, broken_off: bool = False) -> None:
        """There are no more answers. broken_off: because of a failure of the whole run, whose error follows."""
        self._clear()
        several = self._all > 1
        if self._cut:
            print(_cut_line(self._cut, self._max_tokens, several), file=sys.stderr)
        if self._empty:
            print(empty_hint(self._empty, self.answered), file=sys.stderr)
        if broken_off:
            return
        if several and self.answered:
            print(self._closing_line(), file=sys.stderr)
        if self.failed:
            what = "pictures" if self._prompts == 1 else "answers"
            print(f"{self.failed} of {self._all} {what} failed", file=sys.stderr)

    def _closing_line(self) -> str:
        seconds = max(time.perf_counter() - self._began - self._load_s, 1e-9)
        pictures = self.answered / self._prompts / seconds
        rate = f"{pictures:.3g} pictures a second"
        if self._prompts > 1:
            rate += f", each with {self._prompts} prompts"
        count = f"{self.answered} answer{'s' if self.answered > 1 else ''}"
        return f"{count} in {seconds:.1f} s, {rate}; loading took {self._load_s:.2f} s more"

    def _show(self) -> None:
        if self._status:
            done = self.answered + self.failed
            rate = done / max(time.perf_counter() - self._began, 1e-9)
            self._status.show(f"{done} of {self._all}, {rate:.3g} a second")

    def _clear(self) -> None:
        if self._status:
            self._status.clear()


def _cut_line(cut: Sequence[str], max_tokens: int, several: bool) -> str:
    """That answers are not complete; for several pictures with their names."""
    end = f"cut off after {max_tokens} tokens; a larger --max-tokens lets them go on"
    if not several:
        return f"the answer was cut off after {max_tokens} tokens; a larger --max-tokens lets it go on"
    names = ", ".join(cut[:_NAMED]) + (f" and {len(cut) - _NAMED} more" if len(cut) > _NAMED else "")
    return f"{len(cut)} answer{'s were' if len(cut) > 1 else ' was'} {end}: {names}"
