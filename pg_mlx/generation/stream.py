"""One question about one or several pictures, answered token by token."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..paligemma import PaliGemma
from ..processor import Processor
from .answer import Answer
from .asked import AskedImage
from .engine import engine_for
from .features import FeatureCache
from .options import AnswerOptions, GenerateOptions
from .request import Request, make_request
from .results import Generation, Step

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11


def generate(
    model: PaliGemma,
    processor: Processor,
    prompt: str,
    image: Any,
    *,
    verbose: bool = False,
    **options: Unpack[GenerateOptions],
) -> Generation:
    """The whole answer at once. Arguments and errors as `stream_generate`. verbose: print on stderr how long each stage
    took."""
    *_, last = stream_generate(model, processor, prompt, image, **options)
    assert last.generation is not None
    if verbose:
        print(last.generation.stats.summary(), file=sys.stderr)
    return last.generation


def stream_generate(
    model: PaliGemma, processor: Processor, prompt: str, image: Any, **options: Unpack[GenerateOptions]
) -> Iterator[Step]:
    """Answer a prompt about a picture: one Step for each token, and a last Step that has the Generation.

    prompt: the plain task text, as "caption en" or "detect cat ; dog". image: a path, URL, bytes, PIL image or array,
    or a list of them for one prompt about several pictures. options: see GenerateOptions.
    Raises InputError, before anything is computed, for a bad picture, prompt or option, and TypeError for an unknown
    option. If the model fails, all tokens that were known before that have been yielded.
    """
    read = AnswerOptions.read(options)
    request = make_request(
        processor,
        prompt,
        image,
        read.sampling,
        logprobs=read.logprobs,
        constrain=read.constrain,
        max_regions=read.max_regions,
    )
    return answer_request(model, processor, replace(request, image=AskedImage(image)), read.cancelled)


def answer_request(
    model: PaliGemma,
    processor: Processor,
    request: Request,
    cancelled: Callable[[], bool],
    features: FeatureCache | None = None,
) -> Iterator[Step]:
    """The Steps of one request, as `stream_generate` yields them. features: of pictures that were encoded before."""
    engine = engine_for(model, processor, features=features)
    row = engine.add(request)
    answer = Answer(row, model, processor, time.perf_counter() - request.ready_s)
    while engine.busy:
        for progress in engine.step():
            yield from answer.push(progress.token_ids)
        if row.finish_reason is None and cancelled():
            row.cancel()
