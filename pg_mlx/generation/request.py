"""One question as the engine needs it: pixels, token ids, how to answer, and what the answer may say."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InputError
from ..processor import Processor, images
from ..threads import Shared
from ..timeline import timed
from .asked import AskedImage
from .features import Picture
from .grammar import grammar_for
from .sampling import Allowed, SamplingOptions, alternatives
from .stop import StopStrings

if TYPE_CHECKING:
    from PIL import Image


class Guide(Protocol):
    """What one answer may say, token by token. Implementations know a grammar; the engine knows none."""

    def allowed(self) -> Allowed:
        """The ids of which the next token must be one, as a list or a range with a step of 1; None for all.

        If only <eos> and one other token are allowed, that token and those that must follow it are read in one pass,
        before it is known whether the answer goes on. The logits of that pass decide between them and <eos>."""

    def advance(self, token_id: int) -> Sequence[int]:
        """The next token is token_id, which is not <eos>. Returns those that have to follow it, often none: the model
        reads them in the same pass, and nothing is chosen there. The guide's state is then the one after them."""

    def allowed_after_next(self) -> Allowed:
        """What `allowed` will return after the next token, if that is the same whichever token it is (<eos> aside) and
        `advance` forces none to follow it. None if it is not, or if it is not known.

        A GPU then begins the pass after the next token before that token is known."""


@dataclass(frozen=True)
class Request:
    """One question: pictures, ids of the prompt (<bos> first, newline last), and how to answer."""

    pictures: Sequence[Picture]
    prompt_ids: Sequence[int]
    options: SamplingOptions = field(default_factory=SamplingOptions)
    guide: Guide | None = None
    logprobs: bool | int = False
    """Also report the log-probability of each chosen token, and of so many alternatives: one more pass over the logits.
    As in GenerateOptions."""
    ready_s: float = 0.0
    """Seconds that making the request took. They belong to the time to the first token."""
    stops: StopStrings | None = None
    """options.stop, with the tokenizer that makes text of tokens; an engine does not look at options.stop."""
    image: AskedImage | None = None
    """The (first) picture as it was asked about, for those who want to see the answer."""
    alternatives: int | None = field(init=False, default=None)
    """How many likely tokens are reported with each log-probability; None for no log-probabilities."""

    def __post_init__(self) -> None:
        """Draw a seed if none was given, so that a second attempt at this request gives the same answer. Raises
        InputError for a wrong logprobs."""
        if self.options.seed is None:
            object.__setattr__(self, "options", replace(self.options, seed=secrets.randbits(64)))
        object.__setattr__(self, "alternatives", alternatives(self.logprobs))


@dataclass(frozen=True)
class Prompt:
    """The part of a request that many pictures can share."""

    ids: Sequence[int]
    """<bos>, the text's tokens, newline."""
    guide: Guide | None = None
    """Not changed by answers: each one works on a copy."""


def make_request(
    processor: Processor,
    prompt: str | Prompt | Shared[Prompt],
    image: Any,
    options: SamplingOptions,
    *,
    logprobs: bool | int = False,
    constrain: bool = False,
    max_regions: int | None = None,
) -> Request:
    """The request for one prompt about one or several pictures. Every way into the program makes its requests here.

    prompt: text, or what `make_prompt` makes of it (then constrain and max_regions have no effect). image: whatever
    `make_pictures` takes, or what it makes of it. Both may be Shared by several requests. ready_s of the request is the
    time that this call takes.
    Raises InputError for a bad picture, for no picture, for text that cannot be tokenized, and as `make_prompt`.
    """
    start = time.perf_counter()
    if isinstance(prompt, str):
        prompt = make_prompt(processor, prompt, constrain=constrain, max_regions=max_regions)
    elif isinstance(prompt, Shared):
        prompt = prompt()
    elif not isinstance(prompt, Prompt):
        raise InputError(f"a prompt is text, not a {type(prompt).__name__}; batch_generate takes several")
    pictures = make_pictures(processor, image() if isinstance(image, Shared) else image)
    stops = StopStrings(processor.tokenizer, options.stop) if options.stop else None
    return Request(pictures, prompt.ids, options, prompt.guide, logprobs, time.perf_counter() - start, stops)


def make_prompt(processor: Processor, text: str, *, constrain: bool = False, max_regions: int | None = None) -> Prompt:
    """The ids of a prompt and, for a constrained answer, its grammar.

    Raises InputError for text that cannot be tokenized, for a constrained prompt that does not ask for regions, and for
    max_regions without constrain.
    """
    guide = grammar_for(processor.tokenizer, text, constrain, max_regions)
    return Prompt(processor.prompt_ids(text), guide)


def make_pictures(processor: Processor, image: Any, max_pixels: int | None = None) -> list[Picture]:
    """The pictures of one question, each read and brought to RGB once.

    image: anything that `load_image` takes, a Picture that was made before, or a list of these.
    max_pixels: as in `load_image`.
    Raises InputError for a bad picture or an empty list, and TooLarge (an InputError) for too many pixels.
    """
    several = list(image) if isinstance(image, (list, tuple)) else [image]
    if not several:
        raise InputError("no picture was given; PaliGemma needs at least one")
    return [one if isinstance(one, Picture) else _read(processor, one, max_pixels) for one in several]


def _read(processor: Processor, source: Any, max_pixels: int | None) -> Picture:
    with timed("picture"):
        return resized(processor, images.load_image(source, max_pixels))


def resized(processor: Processor, image: Image.Image) -> Picture:
    """The Picture of an image that `load_image` has read, in RGB and upright. Its regions are in pixels of the
    picture as it is stored, also where a smaller copy was read."""
    return Picture(images.to_pixels(image, processor.image_size, processor.resample), images.full_size(image))
