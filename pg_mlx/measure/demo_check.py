"""Compares the bundled checkpoint's answers about its picture, on any device, with the answers stored beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoint.load import load
from ..demo import CHECKPOINT
from ..ops.device import dtype_name
from .kernels import Check, relative_error

SCENE = CHECKPOINT.parent / "scene.png"
EXPECTED = CHECKPOINT.parent / "expected.json"
PROMPTS = ("detect red circle", "segment red circle", "caption en")
BOUNDS = {mx.float32: 5e-3, mx.float16: 2e-2, mx.bfloat16: 1e-1}
"""As kernels.BOUNDS, but for whole runs: features and logits sum the rounding of all layers."""


@dataclass(frozen=True)
class Run:
    """The results for SCENE and PROMPTS: features [N, D]; for each prompt the float32 logits [tokens + 1, V] that
    predict the expected tokens and <eos>, and the greedy answer."""

    features: mx.array
    logits: list[mx.array]
    tokens: list[list[int]]
    texts: list[str]
    eos_id: int


def run(device: mx.DeviceType, dtype: mx.Dtype, expected: Sequence[Sequence[int]] | None = None) -> Run:
    """Answer PROMPTS on a device in a dtype. expected: the answers whose logits are computed; the run's own if None."""
    from ..generation import generate

    with _default(device):
        model, processor = load(CHECKPOINT, dtype=dtype)
        features = model.encode_image(mx.array(processor.pixels(str(SCENE)))[None])
        logits, tokens, texts = [], [], []
        for index, prompt in enumerate(PROMPTS):
            answer = generate(model, processor, prompt, str(SCENE))
            tokens.append(answer.token_ids)
            texts.append(answer.text)
            prefix, suffix = processor.prompt_ids(prompt), expected[index] if expected else answer.token_ids
            every = model.logits(features, mx.array([prefix]), mx.array([list(suffix)]))
            logits.append(every[0, len(prefix) - 1 :].astype(mx.float32))
        mx.eval(features, logits)
        return Run(features[0], logits, tokens, texts, processor.tokenizer.eos_id)


@contextmanager
def _default(device: mx.DeviceType) -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(device)
    try:
        yield
    finally:
        mx.set_default_device(before)


def stored() -> list[dict[str, Any]]:
    """The contents of EXPECTED: for each answer `prompt`, `text`, `tokens`, and the `logits` of the tokens and
    <eos>."""
    found: list[dict[str, Any]] = json.loads(EXPECTED.read_text())
    return found


def to_store(found: Run) -> list[dict[str, Any]]:
    """The contents of EXPECTED from a run in float32."""
    rows = zip(PROMPTS, found.texts, found.tokens, found.logits, strict=True)
    return [
        {
            "prompt": prompt,
            "text": text,
            "tokens": tokens,
            "logits": [round(logit, 3) for logit in np.array(_chosen(logits, tokens, found.eos_id)).tolist()],
        }
        for prompt, text, tokens, logits in rows
    ]


def _chosen(logits: mx.array, tokens: Sequence[int], eos_id: int) -> mx.array:
    """From logits [tokens + 1, V] those of the tokens and of <eos> after them: [tokens + 1]."""
    return mx.take_along_axis(logits, mx.array([*tokens, eos_id])[:, None], axis=1)[:, 0]


def against_stored(name: str, found: Run, dtype: mx.Dtype) -> Iterator[Check]:
    """Compares a run, whose logits follow the stored tokens, with what is stored."""
    bound = BOUNDS[dtype]
    for answer, logits, tokens in zip(stored(), found.logits, found.tokens, strict=True):
        ours = _chosen(logits, answer["tokens"], found.eos_id)
        error = relative_error(ours, mx.array(answer["logits"]))
        yield Check(f"{name}: stored logits of {answer['prompt']!r}", error, bound, f"{len(answer['logits'])} tokens")
        yield _tokens(f"{name}: stored answer to {answer['prompt']!r}", tokens, answer["tokens"], logits, bound)


def against_run(name: str, found: Run, reference: Run, dtype: mx.Dtype) -> Iterator[Check]:
    """Compares a run with a reference run."""
    bound = BOUNDS[dtype]
    yield Check(f"{name}: features", relative_error(found.features, reference.features), bound)
    for index, prompt in enumerate(PROMPTS):
        logits = reference.logits[index]
        yield Check(f"{name}: logits of {prompt!r}", relative_error(found.logits[index], logits), bound)
        yield _tokens(f"{name}: answer to {prompt!r}", found.tokens[index], reference.tokens[index], logits, bound)


def _tokens(name: str, found: Sequence[int], expected: Sequence[int], logits: mx.array, bound: float) -> Check:
    """Compares two answers. Where two tokens are about equally likely, either is right, and the rest is not compared.

    logits [tokens + 1, V]: of either run, for the expected answer. The error is the distance of the two tokens' logits
    at the first difference, as a fraction of the RMS of the logits there.
    """
    same = sum(1 for _ in _agreeing(found, expected))
    said = f"{same} of {len(expected)} tokens"
    if len(found) == len(expected) == same:
        return Check(name, 0.0, bound, said)
    if same == len(expected) or same == len(found):  # one of them ends here
        return Check(name, float("inf"), bound, said)
    here = logits[same]
    gap = mx.abs(here[expected[same]] - here[found[same]]) / mx.sqrt(mx.square(here).mean())
    return Check(name, float(gap.item()), 2 * bound, said)  # type: ignore[arg-type]


def _agreeing(found: Sequence[int], expected: Sequence[int]) -> Iterator[int]:
    for ours, theirs in zip(found, expected, strict=False):
        if ours != theirs:
            return
        yield ours


def description(device: mx.DeviceType, dtype: mx.Dtype) -> str:
    """The name of a run: "GPU, bfloat16"."""
    return f"{'GPU' if device == mx.gpu else 'CPU'}, {dtype_name(dtype)}"
