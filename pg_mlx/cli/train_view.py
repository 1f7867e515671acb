"""What a person sees of a fine-tuning: a bar and a line for each report on stderr, a table of scores on stdout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..memory.size import format_size
from ..training.card import FIGURES
from ..training.events import Ended, Evaluated, Event, Saved, Stepped, TrainReport, figures
from .progress import WorkProgress


class TrainView:
    """Shows one run. silent: nothing at all, as in a process that only helps another one."""

    def __init__(self, program: str, silent: bool = False):
        self.program, self._silent = program, silent
        self.ended = Ended(0, "done", None, 0.0)
        self._bar: Any = None
        self._validation: WorkProgress | None = None

    def say(self, lines: Sequence[str]) -> None:
        """Lines on stderr."""
        if not self._silent:
            print(*lines, sep="\n", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def watching(self, steps: int, done: int) -> Iterator[None]:
        """A bar over the steps, where stderr is a terminal."""
        if not self._silent and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=done, unit="step", leave=False, file=sys.stderr)
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()

    def validating(self, done: int, total: int) -> None:
        """So many rows of a validation are done."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"validation: {done} of {total}")
        elif not self._silent:
            self._validation = self._validation or WorkProgress("validation", "row")
            self._validation.show(done, total)

    def show(self, event: Event) -> None:
        """Show what has happened."""
        if isinstance(event, Stepped) and self._bar is not None:
            self._bar.update(event.step - self._bar.n)
        elif isinstance(event, TrainReport):
            self._line(
                f"step {event.step}: loss {event.loss:.4f}, learning rate {event.learning_rate:.2e}, "
                f"{event.steps_per_second:.2f} steps/s, {event.tokens_per_second:.0f} tokens/s, "
                f"peak {format_size(event.peak_memory_bytes)}"
            )
        elif isinstance(event, Evaluated):
            self._validation = None
            if self._bar is not None:
                self._bar.set_postfix_str("", refresh=False)
            loss = [] if event.loss is None else [f"loss {event.loss:.4f}"]
            known = [f"{FIGURES[name]} {value:.3f}" for name, value in figures(event.scores).items()]
            best = " (best)" if event.best else ""
            self._line(f"step {event.step}: validation{best}: {', '.join([*loss, *known])}; {event.seconds:.1f} s")
        elif isinstance(event, Ended):
            self.ended = event
            reason = {"done": "done", "no better": "stopped, as it got no better", "interrupted": "interrupted, saved"}
            self._line(f"step {event.step}: {reason[event.reason]} after {event.seconds:.0f} s")
        elif isinstance(event, Saved) and self._bar is not None:
            self._bar.set_postfix_str(f"saved at {event.step}")

    def _line(self, text: str) -> None:
        if self._silent:
            return
        if self._bar is not None:
            self._bar.clear()
        print(text, file=sys.stderr, flush=True)
        if self._bar is not None:
            self._bar.refresh()


def table(result: dict[str, Any]) -> list[str]:
    """The scores of a run's end as lines: one column for each split that was asked."""
    splits = [name for name in ("validation", "test") if name in result]
    lines = [f"{result['folder']}: {result['step']} steps"]
    if not splits:
        return lines
    lines[0] += f", best at {result['best_step']}" if "best_step" in result else ""
    lines.append(f"{'':<20}" + "".join(f"{name:>12}" for name in splits))
    for key, words in {"loss": "loss", **FIGURES}.items():
        values = [result[name].get(key) for name in splits]
        if any(value is not None for value in values):
            lines.append(f"{words:<20}" + "".join(f"{'-' if v is None else f'{v:.3f}':>12}" for v in values))
    return lines
