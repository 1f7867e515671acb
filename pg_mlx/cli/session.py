"""The model that a command was given, asked all of its prompts about all of its pictures."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from ..threads import Prefetch, Shared, run_into
from ..timeline import timed
from .options import load_options, load_progress
from .pictures import Picture

if TYPE_CHECKING:
    from PIL import Image

    from ..generation import Picture as Pixels
    from ..generation import Request, Step
    from ..paligemma import PaliGemma
    from ..processor import Processor

BATCH_SIZE, BATCH_PATCHES = 8, 8192
"""The rows of a batch where nobody says how many: so many at most, and with so many picture tokens together, whose keys
and values take 0.2 GB (PaliGemma, 16 bits) to 0.9 GB (PaliGemma 2, 3B)."""


class Asking:
    """Iterate over it for what happens to which picture, as generation.Flow tells it.

    Threads read pictures while the model is loaded, and go on while it answers about the ones before.
    """

    def __init__(self, args: argparse.Namespace, pictures: list[Picture], stop: list[int]):
        """stop: filled when the user wants an end. While the model is loaded that is an interrupt as usual."""
        self.sizes: dict[int, tuple[int, int]] = {}
        """Width and height of each picture that was read."""
        self.images: dict[int, Image.Image] = {}
        """Those that will be drawn on and cannot be read again."""
        self._args, self._stop = args, stop
        self._loaded: Future[tuple[PaliGemma, Processor]] = Future()
        self._requests = Prefetch(self._functions(pictures))
        self._prompts = dict.fromkeys(picture.prompt for picture in pictures)
        self._count = len(pictures)

    def __iter__(self) -> Iterator[tuple[int, Step | Exception]]:
        from ..generation import Flow

        run_into(self._loaded, self._load)
        model, processor = self._loaded.result()
        for prompt in self._prompts:
            processor.prompt_ids(prompt)  # or a bad one would be the fault of every picture
        _note_interrupts(self._stop)
        most = self._args.batch_size or min(BATCH_SIZE, BATCH_PATCHES // model.config.vision.num_patches)
        rows = max(1, min(most, self._count))
        return iter(Flow(model, processor, self._requests, rows, window=2 * rows, cancelled=lambda: bool(self._stop)))

    def _functions(self, pictures: list[Picture]) -> Iterator[Callable[[], Request]]:
        """What makes each one's request. Those that differ in their prompt only share the picture."""
        for _, same in groupby(enumerate(pictures), key=lambda one: one[1].source):
            row = list(same)
            read = Shared(partial(self._read, row[0][1]))
            yield from (partial(self._request, index, picture, read) for index, picture in row)

    def _read(self, picture: Picture) -> tuple[Image.Image, Pixels, float]:
        """The picture, what the model sees of it, and the seconds both took."""
        start = time.perf_counter()
        with timed("picture"):
            image = picture.load()
        read_s = time.perf_counter() - start
        _, processor = self._loaded.result()  # waits for it

        from ..generation import Picture as Pixels

        start = time.perf_counter()
        with timed("picture"):
            pixels = Pixels(processor.pixels(image), image.size)
        return image, pixels, read_s + time.perf_counter() - start

    def _request(self, index: int, picture: Picture, read: Callable[[], tuple[Image.Image, Pixels, float]]) -> Request:
        image, pixels, read_s = read()
        self.sizes[index] = image.size
        if self._args.annotate and (picture.image or not picture.path):
            self.images[index] = image

        from ..generation import Request, SamplingOptions, grammar_for

        args, (_, processor) = self._args, self._loaded.result()
        scores = args.min_score is not None or args.format == "coco"
        # Where nothing but their order decides which regions are kept, the answer may end with the last of them.
        first = args.max_regions if args.constrain and not scores and args.dedup_iou is None else None
        return Request(
            [pixels],
            processor.prompt_ids(picture.prompt),
            SamplingOptions(args.max_tokens, args.temp, args.top_p, args.top_k, args.min_p, args.seed),
            grammar_for(processor.tokenizer, picture.prompt, args.constrain, first),
            scores,
            ready_s=read_s,
        )

    def _load(self) -> tuple[PaliGemma, Processor]:

        from ..checkpoint.load import load_with
        from ..demo import CHECKPOINT
        from ..generation import SamplingOptions
        from ..ops import device
        from ..ops.device import dtype_name

        args = self._args
        SamplingOptions(args.max_tokens, args.temp, args.top_p, args.top_k, args.min_p, args.seed)

        if args.model is None:
            note = "no --model: the bundled demo answers, which knows only coloured shapes and short words"
            print(note, file=sys.stderr)
        progress, done = load_progress()
        model, processor = load_with(args.model or CHECKPOINT, load_options(args), progress)
        done()
        if args.verbose:
            text, vision = model.config.text, model.config.vision
            unpacked = f", {model.float_layers} of them in float32" if args.memory else ""
            print(
                f"{text.model_type}, {text.num_hidden_layers} layers of {text.hidden_size}{unpacked}; "
                f"{vision.image_size} px, {vision.num_patches} image tokens; "
                f"computing in {dtype_name(model.dtype)} on the {'GPU' if device.is_gpu() else 'CPU'}",
                file=sys.stderr,
            )
        return model, processor


def _note_interrupts(pressed: list[int]) -> None:
    """The first Ctrl-C fills the list, for the answer to end between two tokens; the second one interrupts."""

    def note(number: int, frame: object) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
