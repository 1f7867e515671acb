"""Many questions at once: as many rows as the batch size allows, each replaced by the next when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import mlx.core as mx

from ..errors import InputError
from ..limits import MAX_BATCH_SIZE
from ..paligemma import PaliGemma
from ..processor import Processor
from ..threads import Prefetch, Shared
from .features import Picture
from .grammar import grammar_for
from .request import Request, pictures_of
from .results import Generation
from .sampling import SamplingOptions
from .scheduler import Flow


def batch_generate(
    model: PaliGemma, processor: Processor, prompts: str | Sequence[str], images: Any, **options: Any
) -> list[Generation]:
    """The answers to all prompts, in their order. Arguments and errors as `stream_batch`."""
    done = dict(stream_batch(model, processor, prompts, images, **options))
    return [done[index] for index in range(len(done))]


def stream_batch(
    model: PaliGemma,
    processor: Processor,
    prompts: str | Sequence[str],
    images: Any,
    *,
    batch_size: int = 8,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int | None = None,
    logprobs: bool = False,
    constrain: bool = False,
    max_regions: int | None = None,
) -> Iterator[tuple[int, Generation]]:
    """Answer many prompts about many pictures: (index, Generation) in the order in which they are done.

    prompts and images: lists of the same length, or one of them a single one that goes with all of the other. An item
    of images is whatever `stream_generate` takes, so a list for a prompt about several pictures. At most batch_size
    answers are computed at a time. Pictures are read by other threads, a bounded number of them ahead; equal ones are
    encoded once, as long as a FeatureCache still holds them.
    Each answer is the one that `generate` gives with the same options, seed included; in 16 bits a batch may round
    otherwise. Closing the iterator ends everything.
    Raises InputError: at once for a bad option, lists that do not match, or constrained prompts that are not for boxes;
    when its turn comes for a bad picture.
    """
    options = SamplingOptions(max_tokens, temperature, top_p, top_k, min_p, seed)
    if not isinstance(batch_size, int) or not 1 <= batch_size <= MAX_BATCH_SIZE:
        raise InputError(f"batch_size is {batch_size}, but must be a whole number from 1 to {MAX_BATCH_SIZE}")
    pairs = _pairs(prompts, images)
    for prompt in dict.fromkeys(prompt for prompt, _ in pairs):
        grammar_for(processor.tokenizer, prompt, constrain, max_regions)
    requests = _requests(processor, pairs, options, logprobs, constrain, max_regions)
    return _run(model, processor, requests, batch_size)


def _pairs(prompts: str | Sequence[str], images: Any) -> list[tuple[str, Any]]:
    several = isinstance(images, (list, tuple))
    if isinstance(prompts, str):
        prompts = [prompts] * (len(images) if several else 1)
    if not several:
        images = [images] * len(prompts)
    if len(prompts) != len(images):
        raise InputError(f"{len(prompts)} prompts do not go with {len(images)} pictures")
    return list(zip(prompts, images, strict=True))


def _run(
    model: PaliGemma,
    processor: Processor,
    requests: Iterator[Callable[[], Request]],
    batch_size: int,
) -> Iterator[tuple[int, Generation]]:
    for index, step in Flow(model, processor, Prefetch(requests), batch_size):
        if isinstance(step, Exception):
            raise step
        if step.generation is not None:
            yield index, step.generation


def _requests(
    processor: Processor,
    pairs: list[tuple[str, Any]],
    options: SamplingOptions,
    logprobs: bool,
    constrain: bool,
    max_regions: int | None,
) -> Iterator[Callable[[], Request]]:
    """What makes each pair a request. A picture that several prompts in a row are about is read once, and one that is
    an object of the caller's by one thread at a time."""
    lock = Lock()

    def read(image: Any) -> list[Picture]:
        if all(isinstance(one, (str, Path, bytes)) for one in _listed(image)):
            return pictures_of(processor, image)
        with lock:
            return pictures_of(processor, image)

    def request(prompt: str, pictures: Shared[list[Picture]]) -> Request:
        start = time.perf_counter()
        read, ids = pictures(), processor.prompt_ids(prompt)
        guide = grammar_for(processor.tokenizer, prompt, constrain, max_regions)
        return Request(read, ids, options, guide, logprobs, ready_s=time.perf_counter() - start)

    last, pictures = None, None
    for prompt, image in pairs:
        if pictures is None or image is not last:
            mx.eval([one for one in _listed(image) if isinstance(one, mx.array)])  # other threads may not
            last, pictures = image, Shared(partial(read, image))
        yield partial(request, prompt, pictures)


def _listed(image: Any) -> list[Any]:
    return list(image) if isinstance(image, (list, tuple)) else [image]
