"""Many questions at once: as many rows as the batch size allows, each replaced by the next when it is done."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, SupportsIndex

import mlx.core as mx

from ..errors import InputError
from ..limits import MAX_BATCH_SIZE
from ..paligemma import PaliGemma
from ..processor import Processor
from ..threads import Prefetch, Shared
from .asked import AskedImage
from .features import Picture
from .options import AnswerOptions, GenerateOptions
from .request import Prompt, Request, make_pictures, make_prompt, make_request
from .results import Generation, Generations
from .scheduler import Scheduler

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11


BATCH_SIZE, BATCH_PATCHES = 8, 8192
"""The rows of a batch where no size is given: at most so many, with at most so many image tokens in all. Their keys and
values take 0.2 GB (PaliGemma, 16 bits) to 0.9 GB (PaliGemma 2, 3B)."""


def default_batch_size(model: PaliGemma) -> int:
    """How many rows a batch of this model has if nobody says it."""
    return max(1, min(BATCH_SIZE, BATCH_PATCHES // model.config.vision.num_patches))


def batch_generate(
    model: PaliGemma,
    processor: Processor,
    prompts: str | Sequence[str],
    images: Any,
    *,
    batch_size: int = 8,
    **options: Unpack[GenerateOptions],
) -> Generations:
    """The answers to all prompts, in their order. Arguments and errors as `stream_batch`, which also yields what was
    answered before an error. Once `cancelled` returns True, no further answer begins, and the list holds only those
    that had begun. A notebook shows the list as a grid of pictures."""
    done = dict(stream_batch(model, processor, prompts, images, batch_size=batch_size, **options))
    return Generations(done[index] for index in range(len(done)))


def stream_batch(
    model: PaliGemma,
    processor: Processor,
    prompts: str | Sequence[str],
    images: Any,
    *,
    batch_size: int = 8,
    **options: Unpack[GenerateOptions],
) -> Iterator[tuple[int, Generation]]:
    """Answer many prompts about many pictures: (index, Generation) in the order in which they are done.

    prompts and images: lists of the same length, or one of them a single one that goes with all of the other. An item
    of images is whatever `stream_generate` takes, so a list for a prompt about several pictures. batch_size: at most
    so many answers are computed at a time, 1 to 256. options: see GenerateOptions.
    Pictures are read by other threads, a bounded number of them ahead; equal ones are encoded once, as long as a
    FeatureCache still holds them. Each answer is the one that `generate` gives with the same options, seed included; in
    16 bits a batch may round otherwise. Closing the iterator ends everything.
    Raises InputError: at once for a bad option, lists that do not match, or constrained prompts that do not ask for
    regions; in its turn for a bad picture or prompt. A failure of the model is raised in its turn, too. In its turn
    means: after the answers to all questions before it have been yielded. Meanwhile no further picture is read.
    """
    read = AnswerOptions.read(options)
    if isinstance(batch_size, SupportsIndex):  # NumPy's numbers, too
        batch_size = operator.index(batch_size)
    if not isinstance(batch_size, int) or not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise InputError(f"batch_size is {batch_size}, but must be a whole number from 1 to {MAX_BATCH_SIZE}")
    pairs = _pairs(prompts, images)
    made = {
        text: Shared(partial(make_prompt, processor, text, constrain=read.constrain, max_regions=read.max_regions))
        for text, _ in pairs
    }
    if read.constrain or read.max_regions is not None:
        for prompt in made.values():
            prompt()
    requests = Prefetch(_requests(processor, pairs, made, read))
    return _run(requests, Scheduler(model, processor, requests, batch_size, cancelled=read.cancelled))


def _pairs(prompts: str | Sequence[str], images: Any) -> list[tuple[str, Any]]:
    several = isinstance(images, (list, tuple))
    if isinstance(prompts, str):
        prompts = [prompts] * (len(images) if several else 1)
    if not several:
        images = [images] * len(prompts)
    if len(prompts) != len(images):
        raise InputError(f"{len(prompts)} prompts do not go with {len(images)} pictures")
    return list(zip(prompts, images, strict=True))


def _run(requests: Prefetch[Request], scheduler: Scheduler) -> Iterator[tuple[int, Generation]]:
    """The answers. An error is held back until its turn: its question may be known to fail while others before it are
    being answered."""
    answered: set[int] = set()
    first: tuple[int, Exception] | None = None
    missing: set[int] = set()  # answers that come before it
    for index, step in scheduler:
        if isinstance(step, Exception):
            requests.close()
            if first is None or index < first[0]:
                first, missing = (index, step), set(range(index)) - answered
        elif step.generation is not None:
            answered.add(index)
            missing.discard(index)
            yield index, step.generation
        if first and not missing:
            raise first[1]


def _requests(
    processor: Processor, pairs: list[tuple[str, Any]], made: dict[str, Shared[Prompt]], options: AnswerOptions
) -> Iterator[Callable[[], Request]]:
    """A function for each pair that makes its request. A picture that several prompts in a row are about is read once,
    and one that is an object of the caller's by one thread at a time."""
    lock = Lock()

    def read(image: Any) -> list[Picture]:
        if all(isinstance(one, (str, Path, bytes)) for one in _listed(image)):
            return make_pictures(processor, image)
        with lock:
            return make_pictures(processor, image)

    def request(prompt: Shared[Prompt], pictures: Shared[list[Picture]], asked: AskedImage) -> Request:
        made = make_request(processor, prompt, pictures, options.sampling, logprobs=options.logprobs)
        return replace(made, image=asked)

    last, pictures = None, None
    for text, image in pairs:
        if pictures is None or image is not last:
            mx.eval([one for one in _listed(image) if isinstance(one, mx.array)])  # other threads may not
            last, pictures = image, Shared(partial(read, image))
        yield partial(request, made[text], pictures, AskedImage(image))


def _listed(image: Any) -> list[Any]:
    return list(image) if isinstance(image, (list, tuple)) else [image]
