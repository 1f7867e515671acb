"""Work that the first answer would otherwise wait for, done before it."""

from __future__ import annotations

import time

from ..paligemma import PaliGemma
from .engine import Engine
from .features import Picture
from .request import Request
from .sampling import SamplingOptions

_TOKENS = 3
"""The first token comes from the prefix, the second from a step, and the third from a step after a step."""


def warm_up(model: PaliGemma, *, batch_size: int = 1, pictures: int = 1, prompt_tokens: int = 16) -> float:
    """Answer made-up requests, one alone and then full batches of equally and of unequally long prompts, and return the
    seconds that this took.

    For servers, before their first request: afterwards kernels are compiled for these shapes, weights are in the GPU's
    memory, and freed buffers are there to be used again. pictures and prompt_tokens: those of a typical prompt.
    """
    import numpy as np

    start = time.perf_counter()
    side, vocab = model.config.vision.image_size, model.config.text.vocab_size
    for rows, unequal in [(1, 0)] if batch_size == 1 else [(1, 0), (batch_size, 0), (batch_size, 1)]:
        engine = Engine(model, eos_id=-1, vocab_size=vocab, batch_size=rows)  # no answer ends early
        for row in range(rows):
            shades = [(row + index / pictures) / rows for index in range(pictures)]  # no two pictures are equal
            read = [Picture(np.full((side, side, 3), shade, np.float32)) for shade in shades]
            engine.add(Request(read, [0] * (prompt_tokens + unequal * (row % 2)), SamplingOptions(max_tokens=_TOKENS)))
        while engine.busy:
            engine.step()
    return time.perf_counter() - start
