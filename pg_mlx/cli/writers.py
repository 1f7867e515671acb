"""The loop over pictures, and the forms in which answers go to stdout."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import PgMlxError
from .pictures import Picture, stem

if TYPE_CHECKING:
    from ..generation import Generation, Step
    from .session import Asking

FORMATS = ("text", "json", "jsonl", "coco")


@dataclass(frozen=True)
class Answer:
    picture: Picture
    size: tuple[int, int]
    """Width and height of the picture."""
    generation: Generation


@dataclass(frozen=True)
class Failure:
    picture: Picture
    error: Exception


def answer_all(pictures: list[Picture], asking: Asking, out: Output) -> Iterator[Answer | Failure]:
    """One outcome for each picture and prompt, in order; one that cannot be read or answered does not stop the others.
    `out` is told of an answer token by token as soon as all before it are complete."""
    held: dict[int, list[Step | Exception]] = {}
    first, begun = 0, False
    for index, event in asking:
        held.setdefault(index, []).append(event)
        while first in held:
            ended = False
            for step in held.pop(first):
                if not isinstance(step, Exception):
                    if not begun:
                        out.begin(pictures[first])
                        begun = True
                    out.token(step.text)
                outcome = _outcome(pictures[first], first, step, asking)
                if outcome is not None:
                    yield outcome
                    ended = True
            if not ended:
                break
            first, begun = first + 1, False


def _outcome(picture: Picture, index: int, step: Step | Exception, asking: Asking) -> Answer | Failure | None:
    """What this makes of the picture, if it ends its answer."""
    if isinstance(step, Exception):
        asking.images.pop(index, None)
        return Failure(picture, step)
    if step.generation is None:
        return None
    picture = replace(picture, image=asking.images.pop(index, None))
    return Answer(picture, asking.sizes.pop(index), step.generation)


def describe(failure: Failure) -> str:
    """One line that names the picture."""
    error = failure.error
    reason = str(error) if isinstance(error, PgMlxError) else f"{type(error).__name__}: {error}"
    line = " ".join(reason.split())
    return line if failure.picture.source in line else f"{failure.picture.source}: {line}"


class Output:
    """Is told what happens, and prints what its form wants of it."""

    def begin(self, picture: Picture) -> None:
        """This picture is being asked about."""

    def token(self, text: str) -> None:
        """Text of its answer that became final."""

    def add(self, answer: Answer) -> None:
        """The answer is complete."""

    def close(self) -> None:
        """There are no more."""


def output(kind: str, pictures: list[Picture], prompts: list[str], many: bool) -> Output:
    """kind: one of FORMATS. many: whether more than one picture was asked for, be there so many or not."""
    if kind == "text":
        return TextOutput(many, len(prompts) > 1)
    if kind == "jsonl":
        return JsonLines()
    return CocoOutput(pictures, prompts) if kind == "coco" else JsonOutput(many or len(prompts) > 1)


class TextOutput(Output):
    """The answers as they come; of several each on a line that begins with what it is about."""

    def __init__(self, name_pictures: bool, name_prompts: bool):
        self._name_pictures, self._name_prompts = name_pictures, name_prompts
        self._unfinished = False
        # File names need not be text; answers always are.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]

    def begin(self, picture: Picture) -> None:
        self.close()
        about = [picture.source] * self._name_pictures + [" ".join(picture.prompt.split())] * self._name_prompts
        print("".join(f"{name}: " for name in about), end="")
        self._unfinished = bool(about)

    def token(self, text: str) -> None:
        print(text, end="", flush=True)
        self._unfinished = True

    def add(self, answer: Answer) -> None:
        print(flush=True)
        self._unfinished = False

    def close(self) -> None:
        if self._unfinished:  # an answer broke off
            print()


class JsonLines(Output):
    """An object a line, each written whole and at once, so that whatever stops the program leaves valid lines."""

    def add(self, answer: Answer) -> None:
        sys.stdout.buffer.write(json.dumps(to_json(answer)).encode() + b"\n")
        sys.stdout.buffer.flush()


class JsonOutput(Output):
    """One object for one answer, a list of them where several were asked for."""

    def __init__(self, many: bool):
        self._many = many
        self._answers: list[dict[str, Any]] = []

    def add(self, answer: Answer) -> None:
        self._answers.append(to_json(answer))

    def close(self) -> None:
        print(json.dumps(self._answers if self._many else self._answers[0]), flush=True)


class CocoOutput(Output):
    """A COCO results file: one list with an entry for each region of all pictures."""

    def __init__(self, pictures: list[Picture], prompts: list[str]):
        self._ids = image_ids(pictures)
        self._categories = categories(prompts)
        self._entries: list[dict[str, Any]] = []

    def add(self, answer: Answer) -> None:
        from ..regions.export import to_coco

        for region in answer.generation.regions:
            category = self._categories.setdefault(region.label, len(self._categories) + 1)
            source = answer.picture.source
            self._entries.append(to_coco(region, self._ids[source], category, source))

    def close(self) -> None:
        print(json.dumps(self._entries), flush=True)


def image_ids(pictures: list[Picture]) -> dict[str, int]:
    """By source: the number that COCO's file names are (000000000139.jpg), if all are and differ; else 1, 2, 3..."""
    sources = list(dict.fromkeys(picture.source for picture in pictures))
    numbers = [int(name) for name in map(stem, sources) if re.fullmatch(r"[0-9]{1,18}", name)]
    if len(set(numbers)) != len(sources):
        numbers = list(range(1, len(sources) + 1))
    return dict(zip(sources, numbers, strict=True))


def categories(prompts: list[str]) -> dict[str, int]:
    """By label: 1, 2, 3... in the order in which detect and segment prompts name them."""
    from ..regions.prompt import RegionPrompt

    asked = [RegionPrompt.of(prompt) for prompt in prompts]
    labels = dict.fromkeys(label for one in asked if one for label in one.labels)
    return {label: number for number, label in enumerate(labels, 1)}


def to_json(answer: Answer) -> dict[str, Any]:
    from ..regions.export import malformed_to_json, to_json

    generation = answer.generation
    width, height = answer.size
    return {
        "image": answer.picture.source,
        "prompt": answer.picture.prompt,
        "width": width,
        "height": height,
        "text": generation.text,
        "regions": [to_json(region) for region in generation.regions],
        "malformed": [malformed_to_json(malformed) for malformed in generation.malformed],
        "finish_reason": generation.finish_reason,
        "token_ids": generation.token_ids,
        "stats": asdict(generation.stats),
    }
