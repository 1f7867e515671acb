"""One question about one or several pictures, answered token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

from ..paligemma import PaliGemma
from ..processor import Processor, TextStream
from ..regions import Region
from ..regions.reader import AnswerReader
from .answer import generation_of
from .engine import engine_for
from .grammar import grammar_for
from .request import Request, pictures_of
from .results import Generation, Step
from .sampling import SamplingOptions


def generate(model: PaliGemma, processor: Processor, prompt: str, image: Any, **options: Any) -> Generation:
    """The whole answer at once. Arguments and errors as `stream_generate`."""
    *_, last = stream_generate(model, processor, prompt, image, **options)
    assert last.generation is not None
    return last.generation


def stream_generate(
    model: PaliGemma,
    processor: Processor,
    prompt: str,
    image: Any,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int | None = None,
    cancelled: Callable[[], bool] | None = None,
    logprobs: bool = False,
    constrain: bool = False,
    max_regions: int | None = None,
) -> Iterator[Step]:
    """Answer a prompt about a picture, one Step a token; the last Step carries the Generation.

    prompt: the plain task text, as "caption en" or "detect cat ; dog". image: a path, URL, bytes, PIL
    image or array, or a list of them for one prompt about several pictures. cancelled: asked between
    tokens; once it returns True the answer ends with finish_reason "cancelled". logprobs: also tell each
    token's log-probability, and from them the regions' scores (one more pass over the logits a token).
    constrain: the answer to a detect or segment prompt consists of records with labels out of the prompt, and of
    nothing else (see RegionGrammar); max_regions then ends it with so many regions.
    Raises InputError, before anything is computed, for a bad picture or option, and for another prompt constrained.
    """
    start = time.perf_counter()
    options = SamplingOptions(max_tokens, temperature, top_p, top_k, min_p, seed)
    guide = grammar_for(processor.tokenizer, prompt, constrain, max_regions)
    request = Request(pictures_of(processor, image), processor.prompt_ids(prompt), options, guide, logprobs)
    return _run(model, processor, request, start, cancelled or (lambda: False))


def _run(
    model: PaliGemma, processor: Processor, request: Request, start: float, cancelled: Callable[[], bool]
) -> Iterator[Step]:
    engine = engine_for(model, processor)
    row = engine.add(request)
    text = TextStream(processor.tokenizer)
    reader, regions = AnswerReader(request.pictures[0].size, processor.mask_decoder), list[Region]()
    while engine.busy:
        for progress in engine.step():
            logprobs = row.logprobs[-len(progress.token_ids) :] or repeat(None)
            for token_id, logprob in zip(progress.token_ids, logprobs, strict=False):
                piece = text.push(token_id)
                complete = reader.push(piece, logprob)
                regions += complete
                yield Step(piece, token_id, logprob=logprob, regions=complete)
        if row.finish_reason is None and cancelled():
            row.cancel()
    piece = text.flush()
    complete = [*reader.push(piece), *reader.flush()]
    generation = generation_of(row, model, processor, start, (regions + complete, reader.malformed))
    yield Step(piece, generation=generation, regions=complete)
