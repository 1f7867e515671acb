"""Stop strings: an answer ends before the first one of them, wherever the tokens are cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..processor import TextStream, Tokenizer
from .results import Step


@dataclass(frozen=True)
class StopStrings:
    """The strings before which an answer ends, with the tokenizer that makes text of its tokens."""

    tokenizer: Tokenizer
    strings: Sequence[str]

    def watch(self) -> StopWatch:
        """For one answer, from its beginning."""
        return StopWatch(self)


class StopWatch:
    """Sees in which token of an answer the first stop string becomes complete."""

    def __init__(self, stops: StopStrings):
        self._strings = stops.strings
        self._text = TextStream(stops.tokenizer)
        self._kept = max(map(len, stops.strings)) - 1
        self._tail = ""

    def ends(self, token_id: int) -> bool:
        """Whether the text of the tokens so far, this one included, contains a stop string. Call it once a token."""
        text = self._tail + self._text.push(token_id)
        if first_stop(text, self._strings) is not None:
            return True
        self._tail = text[max(0, len(text) - self._kept) :]
        return False


class HeldBack:
    """Holds back the Steps of an answer as long as their text may turn out to belong to a stop string."""

    def __init__(self, strings: Sequence[str]):
        self._strings = strings
        self._steps: deque[Step] = deque()
        self._stopped = False

    def push(self, step: Step) -> Iterator[Step]:
        """The Steps that are certain now. At a stop string: those before it, the last one with its text cut. What lies
        behind the cut is dropped, with everything pushed later."""
        if self._stopped:
            return
        self._steps.append(step)
        text = "".join(held.text for held in self._steps)
        cut = first_stop(text, self._strings)
        if cut is None:
            for _ in range(self._certain(len(text) - _begun(text, self._strings))):
                yield self._steps.popleft()
            return
        self._stopped = True
        for held in self._steps:
            if cut <= 0:
                break
            yield replace(held, text=held.text[:cut])
            cut -= len(held.text)
        self._steps.clear()

    def flush(self) -> Iterator[Step]:
        """The answer has ended: what is still held back belongs to it."""
        while self._steps:
            yield self._steps.popleft()

    def _certain(self, characters: int) -> int:
        """How many of the Steps held back end within so many characters. A Step without text waits for the next one:
        it may begin a character."""
        count = end = 0
        for number, step in enumerate(self._steps, 1):
            end += len(step.text)
            if end > characters:
                break
            if step.text:
                count = number
        return count


def first_stop(text: str, strings: Sequence[str]) -> int | None:
    """Where the first stop string in the text begins."""
    places = [place for string in strings if (place := text.find(string)) >= 0]
    return min(places, default=None)


def _begun(text: str, strings: Sequence[str]) -> int:
    """How many characters at the end of the text may be the beginning of a stop string."""
    most = max(map(len, strings), default=1) - 1
    for count in range(min(most, len(text)), 0, -1):
        if any(string.startswith(text[-count:]) for string in strings):
            return count
    return 0
