"""One question: what is asked, and what the answer may say."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..errors import InputError
from ..processor import Processor, load_image
from ..timeline import timed
from .features import Picture
from .sampling import Allowed, SamplingOptions


class Guide(Protocol):
    """What one answer may say, token by token. Implementations know a grammar; the engine knows none."""

    def allowed(self) -> Allowed:
        """The ids of which the next token must be one, as a list or a range with a step of 1; None for all.

        If they are <eos> and one other, the model reads that one and those that have to follow it at once, and says in
        the same pass whether the answer goes on with them and what comes then."""

    def advance(self, token_id: int) -> Sequence[int]:
        """The next token is token_id, which is not <eos>. Returns those that have to follow it, often none: the model
        reads them in the same pass and is not asked. The guide's state is then the one after them."""


@dataclass(frozen=True)
class Request:
    """One question: pictures, ids of the prompt (<bos> first, newline last), and how to answer."""

    pictures: Sequence[Picture]
    prompt_ids: Sequence[int]
    options: SamplingOptions = field(default_factory=SamplingOptions)
    guide: Guide | None = None
    logprobs: bool = False
    """Also report how probable each chosen token was: one more pass over the logits."""
    ready_s: float = 0.0
    """What reading the pictures and the prompt took, which belongs to the time to the first token."""

    def __post_init__(self) -> None:
        """Draw the seed that nobody gave, so that a request that is answered again says the same."""
        if self.options.seed is None:
            object.__setattr__(self, "options", replace(self.options, seed=secrets.randbits(64)))


def pictures_of(processor: Processor, image: Any) -> list[Picture]:
    """What `image` of stream_generate stands for. Raises InputError."""
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    if not images:
        raise InputError("no picture was given; PaliGemma needs at least one")
    with timed("picture"):
        pictures = [load_image(one) for one in images]
        return [Picture(processor.pixels(picture), picture.size) for picture in pictures]
