"""In bfloat16: as close to transformers as transformers is to itself, and two bytes from end to end.

The reference is what transformers answered in float32 and in bfloat16 (see make_bf16_reference.py). Bfloat16
rounding flips close decisions, so nobody's tokens agree all the time; the yardstick is how often transformers'
own bfloat16 run agrees with its float32 run. Ours has to reach that against either of the two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from helpers.paths import GOLDEN

from pg_mlx import gemma, residual, siglip
from pg_mlx.checkpoint.load import load_model
from pg_mlx.connector import Connector
from pg_mlx.linear import Linear
from pg_mlx.paligemma import PaliGemma

IMAGES = ("img0_rgb_56x56", "img1_rgb_90w61h", "img2_rgba_40w77h", "img3_gray_33x33")
STEPS = 16


@functools.cache
def model(family: str) -> PaliGemma:
    return load_model(GOLDEN / f"{family}_classic", dtype="bfloat16")


@functools.cache
def pixels() -> mx.array:
    """The four golden pictures [4, 56, 56, 3] in -1..1."""
    stored = mx.load(str(GOLDEN / "pixels.safetensors"))
    return mx.stack([stored[f"{name}.white_background"] for name in IMAGES]).transpose(0, 2, 3, 1)


@functools.cache
def reference(family: str) -> dict[str, mx.array]:
    stored = mx.load(str(GOLDEN / "bf16_reference.safetensors"))
    return {name.removeprefix(f"{family}."): array for name, array in stored.items() if name.startswith(family)}


def choices(family: str, forced: mx.array | None) -> mx.array:
    """Our most likely token at every step [N, STEPS], after our own answer so far or after `forced` [N, STEPS]."""
    given = reference(family)
    features = model(family).encode_image(pixels())[given["images"]]
    slots = features.shape[1] + given["prompts"].shape[1]
    logits, cache = model(family).prefill(
        features, given["prompts"], capacity=slots + STEPS, prefix_lengths=given["lengths"]
    )
    chosen = []
    for step in range(STEPS):
        chosen.append(mx.argmax(logits, axis=-1))
        logits, cache = model(family).step(chosen[-1] if forced is None else forced[:, step], cache)
    return mx.stack(chosen, axis=1)


@pytest.mark.parametrize("mode", ["teacher-forced", "free-running"])
@pytest.mark.parametrize("family", ["pg1", "pg2"])
def test_tokens_agree_as_often_as_transformers_agrees_with_itself(family: str, mode: str) -> None:
    """The margin is 2.7 standard errors of the paired difference: of eight such comparisons between equals, one would
    fail with a probability of 3%. Prompts are the samples, not tokens, because after one flipped token the rest
    of a free answer is lost as a whole."""
    given = reference(family)
    exact = np.array(given["tokens_f32"])
    theirs = np.array(given["teacher_argmax_bf16" if mode == "teacher-forced" else "tokens_bf16"])
    ours = np.array(choices(family, given["tokens_f32"] if mode == "teacher-forced" else None))

    yardstick = (theirs == exact).mean(axis=1)  # of each prompt
    for name, other in (("bfloat16", theirs), ("float32", exact)):
        reached = (ours == other).mean(axis=1)
        margin = 2.7 * np.std(reached - yardstick) / len(yardstick) ** 0.5
        print(
            f"{family} {mode}: ours = transformers {name} {reached.mean():.4f}, "
            f"transformers bfloat16 = float32 {yardstick.mean():.4f}, margin {margin:.4f}"
        )
        assert reached.mean() >= yardstick.mean() - margin
    assert 0.5 < yardstick.mean() < 1  # else this test would show nothing


class Walk:
    """Notes the dtype of everything that the watched methods return."""

    WATCHED = (
        (siglip.VisionTower, "__call__"),
        (siglip.Block, "forward"),
        (Connector, "__call__"),
        (gemma.Gemma, "embed"),
        (gemma.Block, "finish"),
        (residual.RMSNorm, "__call__"),
        (gemma.Attention, "attend"),
        (Linear, "__call__"),
    )

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.seen: dict[str, list[mx.Dtype]] = {}
        for owner, method in self.WATCHED:
            name = f"{owner.__module__.removeprefix('pg_mlx.')}.{owner.__name__}.{method}"
            monkeypatch.setattr(owner, method, self._noting(name, getattr(owner, method)))

    def _noting(self, name: str, method: Callable[..., mx.array]) -> Callable[..., mx.array]:
        self.seen[name] = []

        @functools.wraps(method)
        def noting(*args: object, **kwargs: object) -> mx.array:
            result = method(*args, **kwargs)
            self.seen[name].append(result.dtype)
            return result

        return noting

    def take(self) -> dict[str, list[mx.Dtype]]:
        """What was seen since the last call."""
        taken = self.seen.copy()
        for name in self.seen:
            self.seen[name] = []
        return taken


@pytest.mark.parametrize("lengths", [None, [5, 3, 4]], ids=["single", "ragged"])
@pytest.mark.parametrize("family", ["pg1", "pg2"])
def test_two_bytes_stay_two_bytes(family: str, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Walk(monkeypatch)
    rows = 1 if lengths is None else len(lengths)
    layers = model(family).config.text.num_hidden_layers
    assert pixels().dtype == mx.float32  # what a processor hands over

    features = model(family).encode_image(pixels()[:rows])
    seen = walk.take()
    assert len(seen["siglip.Block.forward"]) == model(family).config.vision.num_hidden_layers
    assert len(seen["connector.Connector.__call__"]) == len(seen["siglip.VisionTower.__call__"]) == 1
    assert only_bfloat16(seen)

    logits, cache = model(family).prefill(
        features, mx.full((rows, 5), 7), capacity=features.shape[1] + 8, prefix_lengths=lengths
    )
    for moment in ("prefill", "step", "step"):
        if moment == "step":
            logits, cache = model(family).step(mx.argmax(logits, axis=-1), cache)
        seen = walk.take()
        assert len(seen["gemma.Block.finish"]) == len(seen["gemma.Attention.attend"]) == layers
        assert len(seen["gemma.Gemma.embed"]) == 1 and len(seen["residual.RMSNorm.__call__"]) > 2 * layers
        assert only_bfloat16(seen)
        assert len(cache.keys) == len(cache.values) == layers
        assert {array.dtype for array in cache.keys + cache.values} == {mx.bfloat16}
        assert logits.dtype == mx.float32

    whole = model(family).logits(features, mx.full((rows, 5), 7), mx.full((rows, 2), 9), lengths)
    seen = walk.take()
    assert len(seen["gemma.Block.finish"]) == layers and only_bfloat16(seen)
    assert whole.dtype == mx.float32


def only_bfloat16(seen: dict[str, list[mx.Dtype]]) -> bool:
    return {dtype for dtypes in seen.values() for dtype in dtypes} == {mx.bfloat16}
