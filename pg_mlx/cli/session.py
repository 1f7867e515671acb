"""One run of `generate`: the model is loaded, and asked all prompts about all pictures."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from ..threads import Prefetch, Shared, run_into
from ..timeline import timed
from .interrupts import note_interrupts
from .options import load_options, load_progress
from .pictures import Item

if TYPE_CHECKING:
    from PIL import Image

    from ..generation import Picture, Prompt, Request, SamplingOptions, Step
    from ..paligemma import PaliGemma
    from ..processor import Processor
    from ..regions.select import RegionFilter


NO_MODEL = "no --model: the bundled demo answers, which knows only coloured shapes and short words"


class Session:
    """Iterate over it for (index of an item, Step or error), as generation.Scheduler yields them.

    Threads read pictures while the model is loaded, and go on while it answers about earlier ones.
    """

    def __init__(self, args: argparse.Namespace, items: list[Item], kept: RegionFilter, stop: list[int]):
        """kept: which regions of an answer are wanted. stop: gets an element when the user presses Ctrl-C. While the
        model is loaded, Ctrl-C interrupts as usual."""
        self._args, self._kept, self._stop = args, kept, stop
        self._items = list(items)
        self._loaded: Future[tuple[PaliGemma, Processor]] = Future()
        self._prompts = {
            text: Shared(partial(self._prompt, text)) for text in dict.fromkeys(item.prompt for item in items)
        }
        self._requests = Prefetch(self._functions(items))

    def __iter__(self) -> Iterator[tuple[int, Step | Exception]]:
        from ..generation import Scheduler
        from ..generation.batch import default_batch_size

        run_into(self._loaded, self._load)
        model, processor = self._loaded.result()
        for prompt in self._prompts.values():
            prompt()  # a bad one is reported once, not for every picture
        note_interrupts(self._stop)
        rows = max(1, min(self._args.batch_size or default_batch_size(model), len(self._items)))
        scheduler = Scheduler(
            model, processor, self._requests, rows, window=2 * rows, cancelled=lambda: bool(self._stop)
        )
        return iter(scheduler)

    def release(self, index: int) -> Item:
        """The item at this index, whose answer has ended. It has its picture if that will be drawn on and cannot be
        read again; the session keeps it no longer."""
        item = self._items[index]
        self._items[index] = replace(item, image=None)
        return item

    def _functions(self, items: list[Item]) -> Iterator[Callable[[], Request]]:
        """A function for each item that makes its request. Items that differ only in their prompt share the picture."""
        for _, same in groupby(enumerate(items), key=lambda pair: pair[1].source):
            group = list(same)
            read = Shared(partial(self._read, group[0][1]))
            yield from (partial(self._request, index, item, read) for index, item in group)

    def _read(self, item: Item) -> tuple[Image.Image, list[Picture], float]:
        """The (first) picture, the pixels of all for the model, and the seconds that both took."""
        from ..processor.images import load_image

        start = time.perf_counter()
        with timed("picture"):
            images = [item.load(), *map(load_image, item.more)]
        read_s = time.perf_counter() - start
        _, processor = self._loaded.result()  # waits for it

        from ..generation.request import resized

        start = time.perf_counter()
        with timed("picture"):
            pictures = [resized(processor, image) for image in images]
        return images[0], pictures, read_s + time.perf_counter() - start

    def _prompt(self, text: str) -> Prompt:
        from ..generation import make_prompt

        args, (_, processor) = self._args, self._loaded.result()
        most = self._kept.enough(args.constrain, self._scores)
        return make_prompt(processor, text, constrain=args.constrain, max_regions=most)

    def _request(self, index: int, item: Item, read: Callable[[], tuple[Image.Image, list[Picture], float]]) -> Request:
        image, pictures, read_s = read()
        if self._draws and (item.image or not item.path):
            self._items[index] = replace(item, image=image)

        from ..generation import make_request

        args, (_, processor) = self._args, self._loaded.result()
        prompt: str | Shared[Prompt] = self._prompts[item.prompt]
        if args.region:
            prompt = about_region(item.prompt, args.region, image.size)
        logprobs = self._scores if args.logprobs is None else args.logprobs
        request = make_request(processor, prompt, pictures, sampling(args), logprobs=logprobs)
        return replace(request, ready_s=request.ready_s + read_s)

    @property
    def _draws(self) -> bool:
        """Whether pictures are needed again once they are answered."""
        return bool(self._args.annotate or self._args.report or self._args.show)

    @property
    def _scores(self) -> bool:
        """Whether regions get scores."""
        return self._args.min_score is not None or self._args.format == "coco"

    def _load(self) -> tuple[PaliGemma, Processor]:

        from ..checkpoint.load import load_with
        from ..demo import CHECKPOINT
        from ..memory.size import format_size
        from ..ops import device
        from ..ops.device import dtype_name

        args = self._args
        sampling(args)  # or InputError
        if args.model is None:
            print(NO_MODEL, file=sys.stderr)
        with load_progress() as progress:
            model, processor = load_with(args.model or CHECKPOINT, load_options(args), progress.show)
        if args.verbose:
            text, vision = model.config.text, model.config.vision
            unpacked = f", {model.float_layers} of them in float32" if args.memory else ""
            print(
                f"{text.model_type}, {text.num_hidden_layers} layers of {text.hidden_size}{unpacked}; "
                f"{vision.image_size} px, {vision.num_patches} image tokens; "
                f"computing in {dtype_name(model.dtype)} on the {'GPU' if device.is_gpu() else 'CPU'}",
                file=sys.stderr,
            )
            for part in args.team.parts if args.team else ():
                print(f"{part.about}; weights {format_size(part.weight_bytes)}", file=sys.stderr)
        return model, processor


def sampling(args: argparse.Namespace) -> SamplingOptions:
    """How tokens are chosen. Raises InputError for an option out of range."""
    from ..generation import SamplingOptions

    return SamplingOptions(
        args.max_tokens,
        args.temp,
        args.top_p,
        args.top_k,
        args.min_p,
        args.seed,
        args.stop or (),
        args.repetition_penalty,
        args.repetition_context_size,
        args.no_repeat_ngram_size,
    )


def about_region(prompt: str, region: list[float], image_size: tuple[int, int]) -> str:
    """A prompt about a place in the picture: its <loc> tokens stand at the end, or where the prompt says {region}.
    Raises InputError for a region that is none."""
    from ..regions import format_region

    text = format_region(region, image_size)
    return prompt.replace("{region}", text) if "{region}" in prompt else f"{prompt} {text}"
