"""Whose answers calibrate and judge: the source's where it fits into memory as a whole, else those of a packed result.

The source's own are best, since a result is to predict what the source would say. But nothing else of a calibration
needs the source whole, so one that is too large is not loaded: a result that is packed by the nearest codes answers
in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

from ..checkpoint.load import build, load_model
from ..checkpoint.open import Checkpoint
from ..processor import Processor
from .layerwise import AnsweredPrompt
from .peak import source_bytes
from .quality import answer, prepare
from .samples import Sample

MAX_TOKENS = 64
"""Tokens of an answer that calibrates or judges."""

Answered = tuple[list[mx.array], list[AnsweredPrompt]]
"""Pixels [1, H, W, 3] of pictures, and prompts about them with answers."""


def answered(
    checkpoint: Checkpoint,
    packed: Path,
    samples: Sequence[Sequence[Sample]],
    processor: Processor,
    progress: Callable[[int, int], None],
) -> list[Answered]:
    """Some lists of samples with greedy answers, those of one picture together.

    checkpoint: the source. packed: the folder of the result that answers if the source does not fit. progress: called
    with the number of samples done and of all. Raises InputError for bad pictures and tensors that cannot be read.
    """
    model = build(checkpoint) if source_bytes(checkpoint) else load_model(packed)
    count, total, done = 0, sum(map(len, samples)), list[Answered]()

    def tick() -> None:
        nonlocal count
        count += 1
        progress(count, total)

    for some in samples:
        pictures, _, texts = prepare(some, processor)
        done.append((pictures, answer(model, processor, pictures, texts, MAX_TOKENS, tick)))
    del model
    mx.clear_cache()
    return done
