"""Requests to a service, its events, and the work before the model, which any thread does without MLX."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import InputError, TooLarge
from ...generation import (
    Generation,
    Picture,
    Request,
    SamplingOptions,
    TokenLogprob,
    make_pictures,
    make_prompt,
    make_request,
)
from ...processor import Processor
from ...processor.images import decoding_bytes
from ...regions import Region
from ..error_codes import ServingError
from .limits import Limits


@dataclass(frozen=True)
class Ask:
    """A prompt about one or several pictures. images: the bytes of a picture file, or the path of one."""

    prompt: str
    images: Sequence[bytes | Path]
    options: SamplingOptions = field(default_factory=SamplingOptions)
    logprobs: bool | int = False
    """Compute log-probabilities of tokens, with so many alternatives (True: 0), and scores of regions (one more pass
    over the logits for each token)."""
    deadline_s: float | None = None
    """Seconds from now until the answer is of no use any more."""
    constrain: bool = False
    """Let the answer to a detect or segment prompt be records with labels out of the prompt, and nothing else."""
    max_regions: int | None = None
    """With `constrain`: the answer ends with so many regions."""
    shorten: bool = False
    """Where memory is limited: let the answer have fewer tokens than max_tokens, if so many do not fit even alone."""

    @property
    def held_bytes(self) -> int:
        """Bytes of the pictures that came with it."""
        return sum(len(image) for image in self.images if isinstance(image, bytes))


@dataclass(frozen=True)
class Text:
    """More of the answer."""

    text: str
    """Empty if its tokens are no whole character yet."""
    tokens: Sequence[TokenLogprob] = ()
    """Its tokens, if log-probabilities were asked for."""


@dataclass(frozen=True)
class RegionFound:
    """A region that has just become complete. Its text was sent before."""

    region: Region


@dataclass(frozen=True)
class Answered:
    """The whole answer. Its statistics count from the submission, so time_to_first_token_s includes queue_s."""

    generation: Generation
    queue_s: float
    """Seconds from the submission until the model began."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of the first picture in pixels."""
        return self.generation.image_size


@dataclass(frozen=True)
class Failed:
    """No (complete) answer. code: one of ERROR_CODES."""

    code: str
    message: str


Reserve = Callable[[int], AbstractContextManager[None]]
"""Holds so many bytes of memory during a block, and may wait for them first."""

Event = Text | RegionFound | Answered | Failed
"""Each request gets any number of Text and RegionFound, then either Answered or Failed, once."""


def check(question: Ask, limits: Limits) -> None:
    """What is cheap to see before a request is queued. Raises ServingError."""
    if not 1 <= len(question.images) <= limits.pictures:
        code = "too_large" if question.images else "bad_request"
        raise ServingError(code, f"a request has 1 to {limits.pictures} pictures, not {len(question.images)}")
    if len(question.prompt) > limits.prompt_characters:
        raise ServingError("too_large", f"the prompt is longer than {limits.prompt_characters} characters")
    if any(isinstance(image, bytes) and len(image) > limits.picture_bytes for image in question.images):
        raise ServingError("too_large", f"a picture is larger than {limits.picture_bytes} bytes")
    if question.deadline_s is not None and not 0 < question.deadline_s <= sys.float_info.max:
        raise ServingError("bad_request", f"deadline_s is {question.deadline_s}, but must be above 0")


def _unlimited(size: int) -> AbstractContextManager[None]:
    return nullcontext()


def prepare(question: Ask, processor: Processor, limits: Limits, reserve: Reserve = _unlimited) -> Request:
    """Decode the pictures and tokenize the prompt. reserve: holds the memory of a picture while it is decoded. Raises
    ServingError for a bad or too large one, and for a prompt that cannot be constrained, and what `reserve` does."""
    try:
        prompt = make_prompt(processor, question.prompt, constrain=question.constrain, max_regions=question.max_regions)
    except InputError as error:
        raise ServingError("bad_request", str(error)) from None
    pictures: list[Picture] = []
    for image in question.images:
        data = image if isinstance(image, bytes) else read_file(image, limits.picture_bytes)
        try:
            with reserve(decoding_bytes(data, limits.pixels) if limits.memory_bytes is not None else 0):
                pictures += make_pictures(processor, data, limits.pixels)
        except InputError as error:
            place = f"{image}: " if isinstance(image, Path) else ""
            code = "too_large" if isinstance(error, TooLarge) else "bad_image"
            raise ServingError(code, f"{place}{error}") from None
    return make_request(processor, prompt, pictures, question.options, logprobs=question.logprobs)


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a regular file, and of nothing that blocks or never ends. Raises ServingError, also for more than
    `limit` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ServingError("bad_image", f"{path} is not a file")
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        raise ServingError("bad_image", f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > limit:
        raise ServingError("too_large", f"{path} is larger than {limit} bytes")
    return data
