"""Parts about whole requests: the second one, and constrained ones."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from ...checkpoint.load import load
from ...demo import CHECKPOINT
from ...generation import Engine, Picture, Request, SamplingOptions
from ...generation.grammar import RegionGrammar
from ...memory.size import format_size
from ...regions.prompt import RegionPrompt
from .context import Context, Found
from .timing import compare

TOKENS = 64
"""Tokens of a constrained answer."""


def second_request(context: Context) -> Found:
    """The time to the first token of a request after others, with MLX's cache of freed buffers emptied before, as the
    engine leaves it behind, and with the buffers of the request before still there."""
    figures: dict[str, Any] = {}
    said = []
    for family in context.shapes.text:
        model = context.model(family)
        side = model.config.vision.image_size
        pixels, ids = mx.random.uniform(-1, 1, (1, side, side, 3)), mx.ones((1, 16), dtype=mx.int32)
        mx.eval(pixels, ids)
        kept: list[int] = []

        def first_token(model: Any = model, pixels: mx.array = pixels, ids: mx.array = ids) -> float:
            began = time.perf_counter()
            features = model.encode_image(pixels)
            logits, cache = model.prefill(features, ids, capacity=features.shape[1] + 32)
            mx.eval(mx.argmax(logits, axis=-1), cache.layers)
            return time.perf_counter() - began

        def emptied(first_token: Any = first_token) -> float:
            mx.clear_cache()
            return float(first_token())

        def as_it_is(first_token: Any = first_token, kept: list[int] = kept) -> float:
            kept.append(mx.get_cache_memory())
            return float(first_token())

        found = compare({"emptied": emptied, "kept": as_it_is}, context.budget(15))
        figures[family] = {"kept_bytes": max(kept)} | {name: timing.figures() for name, timing in found.items()}
        said.append(
            f"{family}: {found['emptied'].seconds * 1e3:.0f} ms to the first token with an empty cache, "
            f"{found['kept'].ratio:.3f} of that with {format_size(max(kept))} of freed buffers kept"
        )
    return Found(f"{'; '.join(said)}.", figures)


class _Blind(RegionGrammar):
    """A grammar that does not say what it will allow, so that no pass begins before its token is known."""

    def allowed_after_next(self) -> None:
        """Nothing is known."""
        return None


def guided(context: Context) -> Found:
    """Constrained answers with and without passes that begin early, and free ones. Tokens are those of the demo's
    vocabulary; the weights are random, so boxes mean nothing."""
    model = context.model("gemma")
    _, processor = load(CHECKPOINT, dtype="float32")
    tokenizer = processor.tokenizer
    asked, ids = RegionPrompt.required("segment red circle"), processor.prompt_ids("segment red circle")
    side = model.config.vision.image_size
    picture = Picture(np.zeros((side, side, 3), np.float32))
    tokens = TOKENS if context.full else TOKENS // 2
    answers: dict[str, list[int]] = {}

    def answer(name: str, kind: type[RegionGrammar] | None) -> float:
        guide = None if kind is None else kind(tokenizer, asked)
        engine = Engine(model, eos_id=tokenizer.eos_id if guide else -1, vocab_size=tokenizer.vocab_size)
        row = engine.add(Request([picture], ids, SamplingOptions(max_tokens=tokens), guide))
        engine.step()
        began = time.perf_counter()
        while engine.busy:
            engine.step()
        answers[name] = row.token_ids
        return (time.perf_counter() - began) / max(1, len(row.token_ids) - 1)

    ways = {
        "waiting": partial(answer, "waiting", _Blind),
        "early": partial(answer, "early", RegionGrammar),
        "free": partial(answer, "free", None),
    }
    found = compare(ways, context.budget(15))
    equal = answers["waiting"] == answers["early"]
    said = (
        f"A constrained token takes {found['waiting'].seconds * 1e3:.2f} ms if every step waits for its token, "
        f"{found['early'].ratio:.2f} of that as it is done, {found['free'].ratio:.2f} without constraint; "
        f"{len(answers['early'])} tokens, {'equal' if equal else 'NOT equal'} both ways."
    )
    figures = {"equal": equal, "tokens": len(answers["early"])} | {name: one.figures() for name, one in found.items()}
    return Found(said, figures, equal)
