"""The kernels of a layer of the vision tower, with a GPU's operations: biases and casts need none of their own."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from helpers.models import Tensors, distance, model_of, pictures, quantized, random_tensors, wide_config_json

from pg_mlx.measure import decode_work, graph
from pg_mlx.ops import device, products
from pg_mlx.ops.gelu import gelu
from pg_mlx.quantization.modes import Quantization
from pg_mlx.residual import add_biased

KERNELS = {"bfloat16": 12, "8 bits": 13, "8 bits, unpacked": 16}


def vision_kernels(layers: int, how: str, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    raw = wide_config_json("gemma")
    raw["vision_config"] |= dict(num_hidden_layers=layers, intermediate_size=192)
    tensors: Tensors = random_tensors(raw)
    if how != "bfloat16":
        raw, tensors, _ = quantized(
            raw, tensors, lambda module, _: ".layers." in module and module.startswith("vision"), bits=8
        )
    model = model_of(raw, tensors, "bfloat16")
    monkeypatch.setitem(products.UNPACK_ROWS, "metal", 1 if how.endswith("unpacked") else None)
    pixels = mx.zeros((1, 28, 28, 3))
    mx.eval(pixels)
    with decode_work.graph_of_a_gpu():
        return graph.kernels(model.encode_image(pixels))


@pytest.mark.parametrize("how", KERNELS)
def test_kernels_of_a_layer_of_the_tower(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = vision_kernels(3, how, monkeypatch) - vision_kernels(2, how, monkeypatch)
    print(f"{how}: {layer.total()} kernels: {dict(layer)}")
    assert layer.total() == KERNELS[how]


def bfloat16(*shape: int, seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed)).astype(mx.bfloat16)


def test_a_bias_within_another_kernel_is_rounded_once() -> None:
    x, y, bias = bfloat16(50, 64, seed=1), bfloat16(50, 64, seed=2), bfloat16(64, seed=3)
    wide_x, wide_y, wide_bias = (np.array(array.astype(mx.float32), np.float64) for array in (x, y, bias))
    with device.use("gpu"):
        hidden, wide = add_biased(x, y, bias)
        activated = gelu(y, bias)
        assert graph.kernels(add_biased(x, y, bias)[0]).total() == graph.kernels(gelu(y, bias)).total() == 1
    assert mx.array_equal(hidden.astype(mx.float32), wide).item()
    z = wide_y + wide_bias
    for actual, exact in (
        (hidden, wide_x + z),
        (activated, 0.5 * z * (1 + np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z**3)))),
    ):
        error = np.abs(np.array(actual.astype(mx.float32)) - exact)
        assert (error <= 2**-8 * np.abs(exact) + 1e-6).all(), "more than one rounding to bfloat16"


@pytest.mark.parametrize("rows", [None, 1], ids=["packed", "unpacked"])
def test_an_8_bit_tower_is_the_tower_of_its_floats(rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = wide_config_json("gemma")
    raw["vision_config"] |= dict(num_hidden_layers=2, intermediate_size=192)
    packed_raw, packed, floats = quantized(
        raw, random_tensors(raw), lambda module, _: ".layers." in module and module.startswith("vision"), bits=8
    )
    model, plain = model_of(packed_raw, packed), model_of(raw, floats)
    assert model.vision_tower.layers[0].mlp.fc1.quantization == Quantization(8, 64)
    monkeypatch.setitem(products.UNPACK_ROWS, "metal", rows)
    with device.use("gpu"):
        assert distance(pictures(model), pictures(plain)) < 2e-5
