"""The loop over items, and the formats in which answers go to stdout."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import PgMlxError
from ..ops.watchdog import explained
from .pictures import Item, stem

if TYPE_CHECKING:
    from ..generation import Generation, Step
    from ..regions import Region
    from .session import Session

FORMATS = ("text", "json", "jsonl", "coco")


@dataclass(frozen=True)
class Success:
    """An item and its answer."""

    item: Item
    generation: Generation


@dataclass(frozen=True)
class Failure:
    """An item and why it has no answer."""

    item: Item
    error: Exception


def answer_all(items: list[Item], session: Session, out: Output) -> Iterator[Success | Failure]:
    """One outcome for each item, in order; one that fails does not stop the others. `out` gets each answer token by
    token, as soon as all answers before it are complete."""
    held: dict[int, list[Step | Exception]] = {}
    first, begun = 0, False
    for index, event in session:
        held.setdefault(index, []).append(event)
        while first in held:
            ended = False
            for step in held.pop(first):
                if isinstance(step, Exception):
                    ended = True
                    yield Failure(session.release(first), step)
                    continue
                if not begun:
                    out.begin(items[first])
                    begun = True
                out.token(step.text)
                if step.generation is not None:
                    ended = True
                    yield Success(session.release(first), step.generation)
            if not ended:
                break
            first, begun = first + 1, False


def describe(failure: Failure) -> str:
    """Why an item has no answer: one line that names its picture."""
    error = failure.error
    reason = str(error) if isinstance(error, PgMlxError) else explained(error)
    line = " ".join(reason.split())
    return line if failure.item.source in line else f"{failure.item.source}: {line}"


class Output:
    """Receives answers, and prints them in its format."""

    def begin(self, item: Item) -> None:
        """The answer for this item begins."""

    def token(self, text: str) -> None:
        """More text of that answer."""

    def add(self, answer: Success) -> None:
        """The answer is complete."""

    def close(self) -> None:
        """There are no more answers."""


class View:
    """Receives answers beside an Output, and makes pictures of them."""

    def add(self, answer: Success) -> None:
        """One more answer. Raises PgMlxError if it cannot be written."""

    def failure(self, failure: Failure) -> None:
        """A picture that has no answer."""

    def close(self) -> None:
        """There are no more answers."""

    def abort(self) -> None:
        """The run has failed: leave nothing that is not whole."""


def output(kind: str, items: list[Item], prompts: list[str], many: bool, raw: bool = False) -> Output:
    """The writer of a format. kind: one of FORMATS. many: whether more than one picture, or a folder, was asked for.
    raw: print boxes as the tokens that the model wrote, on a terminal too."""
    if kind == "text":
        return TextOutput(many, len(prompts) > 1, sys.stdout.isatty() and not raw)
    if kind == "jsonl":
        return JsonLines()
    return CocoOutput(items, prompts) if kind == "coco" else JsonOutput(many or len(prompts) > 1)


def allow_any_text() -> None:
    """Let stdout take whatever an answer or the name of a file is. File names need not be text; answers always are."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's is another one, which takes all of it
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


class TextOutput(Output):
    """The text of answers as it comes. If there are several, each is a line that begins with its picture or prompt.
    For people, the answer to a detect or segment prompt is a line for each region: label, box and mask in pixels."""

    def __init__(self, name_pictures: bool, name_prompts: bool, for_people: bool = False):
        self._name_pictures, self._name_prompts = name_pictures, name_prompts
        self._unfinished = False
        self._for_people = for_people
        self._hidden = False
        allow_any_text()

    def begin(self, item: Item) -> None:
        """Begin its line."""
        self.close()
        from ..processor import plain_prompt
        from ..regions.prompt import RegionPrompt

        self._hidden = self._for_people and RegionPrompt.of(plain_prompt(item.prompt)) is not None
        about = [item.source] * self._name_pictures + [" ".join(item.prompt.split())] * self._name_prompts
        print("".join(f"{name}: " for name in about), end="")
        self._unfinished = bool(about)

    def token(self, text: str) -> None:
        """Print it at once."""
        if self._hidden:
            return
        print(text, end="", flush=True)
        self._unfinished = True

    def add(self, answer: Success) -> None:
        """End the line."""
        if self._hidden:
            print(for_people(answer.generation, self._unfinished), end="")
        print(flush=True)
        self._unfinished = False

    def close(self) -> None:
        """End the line of an answer that was not completed."""
        if self._unfinished:
            print()


def region_line(region: Region) -> str:
    """A region for people: its label, its box in pixels, and the size of its mask."""
    mask = region.mask
    box = " ".join(map(str, map(round, region.box)))
    return f"{region.label or 'an object'}: {box}" + ("" if mask is None else f" (mask of {mask.sum()} pixels)")


def for_people(generation: Generation, several: bool) -> str:
    """The regions of an answer, one a line; its text if it has none. several: it follows the name of its picture."""
    lines = list(map(region_line, generation.regions))
    if generation.malformed:
        lines.append(f"{len(generation.malformed)} parts that are no box (--raw shows them)")
    if not lines:
        return generation.text or "nothing found"
    return "\n".join([""] * (several and len(lines) > 1) + lines)


class JsonLines(Output):
    """A JSON object on each line. A line is written whole, so that a program that is stopped leaves valid lines."""

    def add(self, answer: Success) -> None:
        """Print its line."""
        sys.stdout.buffer.write(json.dumps(to_json(answer)).encode() + b"\n")
        sys.stdout.buffer.flush()


class JsonOutput(Output):
    """One JSON object for one answer, or a list of them if several were asked for."""

    def __init__(self, many: bool):
        self._many = many
        self._answers: list[dict[str, Any]] = []

    def add(self, answer: Success) -> None:
        """Keep it for `close`."""
        self._answers.append(to_json(answer))

    def close(self) -> None:
        """Print all."""
        print(json.dumps(self._answers if self._many else self._answers[0]), flush=True)


class CocoOutput(Output):
    """A COCO results file: one JSON list with an entry for each region of all pictures."""

    def __init__(self, items: list[Item], prompts: list[str]):
        self._ids = image_ids(items)
        self._categories = categories(prompts)
        self._entries: list[dict[str, Any]] = []

    def add(self, answer: Success) -> None:
        """Keep its regions for `close`."""
        from ..regions.export import to_coco

        for region in answer.generation.regions:
            category = self._categories.setdefault(region.label, len(self._categories) + 1)
            source = answer.item.source
            self._entries.append(to_coco(region, self._ids[source], category, source))

    def close(self) -> None:
        """Print all."""
        print(json.dumps(self._entries), flush=True)


def image_ids(items: list[Item]) -> dict[str, int]:
    """COCO's image ids by source: the numbers in the file names (139 for 000000000139.jpg) if every name is one and all
    differ, else 1, 2, 3..."""
    sources = list(dict.fromkeys(item.source for item in items))
    numbers = [int(name) for name in map(stem, sources) if re.fullmatch(r"[0-9]{1,18}", name)]
    if len(set(numbers)) != len(sources):
        numbers = list(range(1, len(sources) + 1))
    return dict(zip(sources, numbers, strict=True))


def categories(prompts: list[str]) -> dict[str, int]:
    """COCO's category ids by label: 1, 2, 3... in the order in which detect and segment prompts name them."""
    from ..regions.prompt import RegionPrompt

    asked = [RegionPrompt.of(prompt) for prompt in prompts]
    labels = dict.fromkeys(label for one in asked if one for label in one.labels)
    return {label: number for number, label in enumerate(labels, 1)}


def to_json(answer: Success) -> dict[str, Any]:
    """An answer in JSON types, with its picture and prompt."""
    item = answer.item
    images = {"images": [item.source, *item.more]} if item.more else {}
    return {"image": item.source, **images, "prompt": item.prompt, **answer.generation.to_json()}
