"""One picture and the questions about it: what `chat` does for each line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..files.whole import write_whole
from .drawings import save_image
from .hints import chat_hint
from .interrupts import interrupts_noted
from .pictures import Item, stem
from .session import sampling
from .show import Show
from .writers import Success, for_people, region_line, to_json

if TYPE_CHECKING:
    from PIL import Image

    from ..generation import Generation
    from ..paligemma import PaliGemma
    from ..processor import Processor


class Conversation:
    """The model, the picture, and the last answer."""

    def __init__(self, args: argparse.Namespace, model: PaliGemma, processor: Processor):
        from ..generation import FeatureCache

        self._args, self._model, self._processor = args, model, processor
        self._features = FeatureCache(model)  # a picture is encoded once, however many questions follow
        self._show: Show | None = None
        self._item: Item | None = None
        self._answer: Success | None = None

    @property
    def name(self) -> str:
        """The picture's name; empty if there is none."""
        return self._item.name if self._item else ""

    def open(self, source: str, image: Image.Image | None = None) -> None:
        """From now on the questions are about this picture. image: the picture, if it has been read. Raises InputError
        if it cannot be read."""
        from ..generation.request import resized
        from ..processor.images import load_image

        image = image or load_image(source)
        self._picture = resized(self._processor, image)
        self._item, self._answer = Item(source, stem(source), image=image), None
        width, height = self._picture.size
        print(f"{source}: {width} x {height}", file=sys.stderr)

    def ask(self, prompt: str) -> None:
        """Print the answer as it comes; Ctrl-C ends it. Raises InputError without a picture or for a bad prompt."""
        item = self._opened()
        if hint := chat_hint(prompt):
            print(hint, file=sys.stderr)
        stop: list[int] = []
        with interrupts_noted(stop):
            generation = self._stream(prompt, stop)
        self._answer = Success(Item(item.source, item.name, prompt, image=item.image), generation)
        if generation.finish_reason == "length":
            print(f"(cut off after {self._args.max_tokens} tokens; --max-tokens)", file=sys.stderr)
        elif generation.finish_reason == "cancelled":
            print("(stopped)", file=sys.stderr)
        if self._args.verbose:
            print(generation.stats.summary(), file=sys.stderr)
        if self._args.show and generation.regions:
            self.show()

    def _stream(self, prompt: str, stop: list[int]) -> Generation:
        """On a terminal the regions of a detect or segment answer come one a line, each when it is complete."""
        from ..generation import make_request
        from ..generation.stream import answer_request
        from ..processor import plain_prompt
        from ..regions.prompt import RegionPrompt

        as_lines = sys.stdout.isatty() and RegionPrompt.of(plain_prompt(prompt)) is not None
        request = make_request(self._processor, prompt, [self._picture], sampling(self._args))
        generation = None
        for step in answer_request(self._model, self._processor, request, lambda: bool(stop), self._features):
            generation = step.generation
            print("".join(f"{region_line(region)}\n" for region in step.regions) if as_lines else step.text, end="")
            sys.stdout.flush()
        assert generation is not None
        if not as_lines:
            print()
        elif not generation.regions:
            print(for_people(generation, False))
        return generation

    def show(self) -> None:
        """Show the picture, with the regions of the last answer. Raises InputError without a picture."""
        item = self._opened()
        from ..regions.draw import annotate

        self._show = self._show or Show("/save FILE writes the picture")
        regions = self._answer.generation.regions if self._answer else []
        self._show.picture(annotate(item.load(), regions), item.name)

    def save(self, name: str) -> None:
        """Write the last answer: as JSON, as text, or as the picture with its regions, as the suffix says.

        Raises InputError if there is no answer, for a file that is there already, and for a suffix that says nothing.
        """
        answer = self._answer
        if answer is None:
            raise InputError("there is no answer to save yet")
        path = Path(name).expanduser()
        if path.exists():
            raise InputError(f"{path} is there already; choose another name")
        if not path.parent.is_dir():
            raise InputError(f"no such folder: {path.parent}")
        suffix = path.suffix.lower()
        if suffix == ".json":
            write_whole(path, lambda partial: partial.write_bytes(json.dumps(to_json(answer)).encode() + b"\n"))
        elif suffix == ".txt":
            write_whole(path, lambda partial: partial.write_bytes(answer.generation.text.encode() + b"\n"))
        else:
            _save_picture(answer, path)
        print(f"wrote {path}", file=sys.stderr)

    def _opened(self) -> Item:
        if self._item is None:
            raise InputError("there is no picture yet: /image PATH")
        return self._item


def _save_picture(answer: Success, path: Path) -> None:
    from PIL import Image

    from ..regions.draw import annotate

    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"{path}: the suffix says what is written: .png or .jpg, .json or .txt")
    save_image(annotate(answer.item.load(), answer.generation.regions), path)
