"""One question about one or several pictures, answered token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import mlx.core as mx

from ..backend import on_gpu
from ..cache import KVCache
from ..errors import InputError
from ..paligemma import PaliGemma
from ..processor import Processor, TextStream, load_image
from ..regions.answer import read_answer
from .results import FinishReason, Generation, Stats, Step
from .sampling import LoggingSampler, SamplingOptions, with_logprobs, without_logprobs


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
) -> Iterator[Step]:
    """Answer a prompt about a picture, one Step a token; the last Step carries the Generation.

    prompt: the plain task text, as "caption en" or "detect cat ; dog". image: a path, URL, bytes, PIL
    image or array, or a list of them for one prompt about several pictures. cancelled: asked between
    tokens; once it returns True the answer ends with finish_reason "cancelled". logprobs: also tell each
    token's log-probability, and from them the regions' scores (one more pass over the logits a token).
    Raises InputError, before anything is computed, for a bad picture or option.
    """
    options = SamplingOptions(max_tokens, temperature, top_p, top_k, min_p, seed)
    start = time.perf_counter()
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    if not images:
        raise InputError("no picture was given; PaliGemma needs at least one")
    pictures = [load_image(one) for one in images]
    pixels = mx.stack([mx.array(processor.pixels(picture)) for picture in pictures])
    ids, size = processor.prompt_ids(prompt), pictures[0].size
    return _run(model, processor, pixels, ids, size, options, start, cancelled or (lambda: False), logprobs)


def _run(
    model: PaliGemma,
    processor: Processor,
    pixels: mx.array,
    ids: list[int],
    image_size: tuple[int, int],
    options: SamplingOptions,
    start: float,
    cancelled: Callable[[], bool],
    logprobs: bool,
) -> Iterator[Step]:
    choose = options.sampler(processor.tokenizer.vocab_size)
    sample = with_logprobs(choose, processor.tokenizer.vocab_size) if logprobs else without_logprobs(choose)
    began = time.perf_counter()
    features = model.encode_image(pixels)
    features = features.reshape(1, -1, features.shape[-1])  # k pictures [k, N, D] are one row [1, kN, D]
    mx.eval(features)
    seen = time.perf_counter()

    prompt_tokens = features.shape[1] + len(ids)
    logits, cache = model.prefill(features, mx.array([ids]), capacity=prompt_tokens + options.max_tokens)
    token, logprob = sample(logits)
    mx.eval(token, logprob, cache.keys, cache.values)
    mx.clear_cache()  # prefill's scratch memory is of no use to decoding
    first = time.perf_counter()

    tokens = _tokens(model, token, logprob, cache, sample, options.max_tokens)
    del cache  # its buffers can be written in place only while nobody else holds them
    text, token_ids, decoded = TextStream(processor.tokenizer), list[int](), 0
    logged: list[tuple[str, float | None]] = []
    finish: FinishReason = "length"
    for token_id, token_logprob in tokens:
        decoded += 1
        if token_id == processor.tokenizer.eos_id:
            finish = "stop"
            break
        token_ids.append(token_id)
        piece = text.push(token_id)
        logged.append((piece, token_logprob))
        yield Step(piece, token_id, logprob=token_logprob)
        if cancelled():
            finish = "cancelled"
            break
    end = time.perf_counter()
    stats = Stats(
        load_s=model.load_s,
        vision_s=seen - began,
        prefill_s=first - seen,
        time_to_first_token_s=first - start,
        prompt_tokens=prompt_tokens,
        prefill_tps=prompt_tokens / (first - seen),
        decode_tokens=decoded,
        decode_tps=(decoded - 1) / (end - first) if decoded > 1 else 0.0,
        peak_memory_bytes=mx.get_peak_memory(),
    )
    answer = processor.tokenizer.decode(token_ids)
    regions, malformed = read_answer(answer, image_size, processor.mask_decoder, logged)
    yield Step(text.flush(), generation=Generation(answer, token_ids, finish, stats, regions, malformed))


def _tokens(
    model: PaliGemma, token: mx.array, logprob: mx.array | None, cache: KVCache, sample: LoggingSampler, limit: int
) -> Iterator[tuple[int, float | None]]:
    """Up to `limit` token ids and their log-probabilities, the given first one included.

    The graph of the next step is built before the current token is read, and on a GPU also started, so
    that the GPU never waits for Python. The CPU backend gains nothing from that, and would compute one
    token too many after <eos>.
    """
    for remaining in range(limit - 1, -1, -1):
        if remaining:
            logits, cache = model.step(token, cache)
            following, following_logprob = sample(logits)
            if on_gpu():
                mx.async_eval(following, following_logprob)
        yield cast(int, token.item()), None if logprob is None else cast(float, logprob.item())
        if remaining:
            token, logprob = following, following_logprob
