"""A decode step starts few kernels, and every one of ours that should be one kernel is one. Run with -rP for the counts."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import pytest
from model_fixtures import FAMILIES, model_of, quantized, random_tensors, wide_config_json

from pg_mlx import PaliGemma, backend
from pg_mlx.activations import geglu, gelu

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import kernels

KERNELS_A_LAYER = {"gemma": 14, "gemma2": 19}


def models(family: str, packed: bool, layers: int) -> PaliGemma:
    raw = wide_config_json(family)
    raw["text_config"]["num_hidden_layers"] = layers
    tensors = random_tensors(raw)
    if packed:
        raw, tensors, _ = quantized(raw, tensors, lambda module, _: module.startswith("language_model"))
    return model_of(raw, tensors, "bfloat16")


@pytest.mark.parametrize("packed", [False, True], ids=["bfloat16", "4 bits"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_of_a_decode_step(family: str, packed: bool) -> None:
    def build(layers: int) -> PaliGemma:
        return models(family, packed, layers)

    layer = kernels.per_layer(build)
    print(f"{family}: {layer.total()} kernels a layer: " + ", ".join(f"{n} {name}" for name, n in layer.items()))
    assert layer.total() == KERNELS_A_LAYER[family]
    # Rows of unequal length scatter where one would write a slice; Gemma 2, which has no fused attention, masks.
    ragged = kernels.per_layer(build, lengths=[5, 3])
    assert ragged["Scatter"] == 1 and ragged.total() == layer.total() + (family == "gemma2")
    assert kernels.per_layer(build, lengths=[5, 5]) == layer


def test_the_rest_of_a_decode_step() -> None:
    """Embedding, positions, final norm, head: what does not grow with the layers."""
    for family in FAMILIES:
        rest = kernels.decode_step(models(family, False, 2)).total() - 2 * KERNELS_A_LAYER[family]
        print(f"{family}: {rest} kernels beside the layers")
        assert rest <= 14


def bfloat16(*shape: int) -> mx.array:
    array = mx.ones(shape, dtype=mx.bfloat16)
    mx.eval(array)
    return array


def test_activations_are_one_kernel_each() -> None:
    x = bfloat16(2, 8)
    with kernels.graph_of_a_gpu():
        assert kernels.kernels(gelu(x)).total() == kernels.kernels(geglu(x, x)).total() == 1


def test_the_rule_of_counting() -> None:
    x = bfloat16(4, 4)
    with kernels.graph_of_a_gpu():
        assert backend.on_gpu()
        assert kernels.kernels(x.reshape(2, 8).swapaxes(0, 1)[:, :1][None]).total() == 0  # views
        assert kernels.kernels(x + x, x * x).total() == 2
        normed = mx.fast.rms_norm(x + x, None, 1e-6)
        assert normed.dtype == mx.bfloat16 and kernels.kernels(normed @ normed.T).total() == 3
    assert backend.on_gpu() == (mx.default_device() == mx.gpu)
    mx.eval(mx.fast.rms_norm(x, None, 1e-6))
