"""Many questions at once: as many rows as the batch size allows, each replaced by the next when it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from ..errors import InputError
from ..paligemma import PaliGemma
from ..processor import Processor
from .grammar import grammar_for
from .pictures import Picture
from .results import Generation
from .rows import Request, Row
from .sampling import SamplingOptions
from .stream import engine_for, generation_of, pictures_of

MAX_BATCH_SIZE = 256


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
    answers are computed at a time, and pictures are read when their turn comes. Equal pictures are encoded once, as
    long as a FeatureCache still holds them.
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
    return _run(model, processor, requests, len(pairs), batch_size)


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
    requests: Iterator[tuple[int, float, Request]],
    waiting: int,
    batch_size: int,
) -> Iterator[tuple[int, Generation]]:
    engine = engine_for(model, processor, batch_size)
    begun: dict[Row, tuple[int, float]] = {}
    enough = max(1, batch_size // 4)  # newcomers at a time: one pass over several prefixes takes less than several
    while waiting or begun:
        if engine.free >= enough:
            for index, start, request in islice(requests, engine.free):
                begun[engine.add(request)] = index, start
                waiting -= 1
        for progress in engine.step():
            if progress.row.finish_reason is not None:
                index, start = begun.pop(progress.row)
                yield index, generation_of(progress.row, model, processor, start)


def _requests(
    processor: Processor,
    pairs: list[tuple[str, Any]],
    options: SamplingOptions,
    logprobs: bool,
    constrain: bool,
    max_regions: int | None,
) -> Iterator[tuple[int, float, Request]]:
    """Each pair's index, the time when it was begun, and its request. Pictures are read one after the other, as asked
    for, and one that several prompts in a row are about is read once."""
    last, pictures = None, list[Picture]()
    for index, (prompt, image) in enumerate(pairs):
        start = time.perf_counter()
        if index == 0 or image is not last:
            last, pictures = image, pictures_of(processor, image)
        guide = grammar_for(processor.tokenizer, prompt, constrain, max_regions)
        yield index, start, Request(pictures, processor.prompt_ids(prompt), options, guide, logprobs)
