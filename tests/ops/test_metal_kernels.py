"""Our own kernels for Metal, run as C++ on NumPy arrays, against the formulas that they replace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.models import distance, model_of, pictures, random_ids, random_tensors, wide_config_json

from pg_mlx import InputError
from pg_mlx.measure import kernels
from pg_mlx.ops import device, metal_kernels
from pg_mlx.residual import Residual, RMSNorm
from tools.metal import source
from tools.metal.bits import from_bfloat16, rounded, to_bfloat16
from tools.metal.grid import NoCompiler, native

Array = np.ndarray


def to_numpy(array: mx.array | float) -> Array | float:
    """With the array's own strides."""
    if not isinstance(array, mx.array):
        return array
    return np.asarray(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def launch(
    kernel: metal_kernels.Kernel,
    inputs: Sequence[mx.array | float],
    *,
    template: Sequence[tuple[str, Any]],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[mx.Dtype],
) -> list[mx.array]:
    """As metal_kernels.launch, on this machine's processor."""
    values = {name: to_numpy(value) for name, value in zip(kernel.inputs, inputs, strict=True)}
    if kernel.name != "capped":  # MLX makes the inputs of the others contiguous
        values = {n: np.ascontiguousarray(v) if isinstance(v, Array) and v.ndim else v for n, v in values.items()}
    outputs = {
        name: (tuple(shape), device.dtype_name(dtype))
        for name, shape, dtype in zip(kernel.outputs, shapes, dtypes, strict=True)
    }
    constants = {name: device.dtype_name(value) if isinstance(value, mx.Dtype) else value for name, value in template}
    found = source.run(kernel.source, kernel.header, values, outputs, grid, threadgroup, constants)
    arrays = [mx.array(found[name]) for name in kernel.outputs]
    return [array.view(dtype) for array, dtype in zip(arrays, dtypes, strict=True)]


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        native()
    except NoCompiler:
        pytest.skip("there is no C compiler")
    monkeypatch.setattr(metal_kernels, "launch", launch)


def random_bfloat16(*shape: int, seed: int, scale: float = 1.0) -> Array:
    """float32 values that bfloat16 has."""
    return rounded(np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * scale)


def as_bfloat16(values: Array) -> mx.array:
    return mx.array(to_bfloat16(values)).view(mx.bfloat16)


@pytest.mark.parametrize("width, post", [(64, False), (2048, False), (2304, True), (3584, True), (4608, True)])
def test_add_norm_is_the_formula_bit_for_bit(width: int, post: bool) -> None:
    """Sums in another order than NumPy's may round one value in many thousands otherwise."""
    x, y = random_bfloat16(3, width, seed=1, scale=3), random_bfloat16(3, width, seed=2, scale=2)
    weight = np.random.default_rng(3).uniform(0.5, 8, width).astype(np.float32)
    own = np.random.default_rng(4).uniform(0.1, 3, width).astype(np.float32) if post else None
    found = metal_kernels.add_norm(
        as_bfloat16(x), as_bfloat16(y), mx.array(weight), 1e-6, None if own is None else mx.array(own)
    )

    def normed(values: Array) -> Array:
        square = np.square(values.astype(np.float64)).mean(axis=-1, keepdims=True)
        return values * (1 / np.sqrt(square + 1e-6)).astype(np.float32)

    added = y if own is None else rounded(normed(y)) * own
    hidden = rounded(x + added)
    expected = hidden, rounded(weight * normed(hidden))
    for actual, wanted in zip(found, expected, strict=True):
        equal = from_bfloat16(np.array(actual.view(mx.uint16))) == wanted
        print(f"{width} wide: {equal.mean():.5f} equal")
        assert equal.mean() == 1 if width < 4608 else equal.mean() > 0.999


@pytest.mark.parametrize("post", [False, True])
def test_add_norm_is_what_it_replaces(post: bool) -> None:
    norm, after = RMSNorm(64, 1e-6), RMSNorm(64, 1e-6) if post else None
    norm.weight = mx.random.uniform(0.5, 8, (64,), key=mx.random.key(0))
    if after is not None:
        after.weight = mx.random.uniform(0.1, 3, (64,), key=mx.random.key(1))
    x, y = (mx.random.normal((2, 3, 64), key=mx.random.key(seed)) for seed in (2, 3))
    residual = Residual(x, y, after)
    with device.use("gpu"), metal_kernels.use("add_norm"):
        ours = residual.then(norm)
    for actual, expected in zip(ours, residual.then(norm), strict=True):
        assert distance(actual, expected) < 1e-5


@pytest.mark.parametrize(
    "batch, heads, kv_heads, width, slots, length, capacity, scale",
    [
        (1, 8, 4, 256, range(277), 1, 300, 1 / 16),
        (2, 8, 4, 256, range(100), 1, 128, 1 / 16),
        (1, 16, 8, 256, range(50), 3, 64, 1 / 16),
        (1, 32, 16, 128, range(64), 1, 64, 144**-0.5),
        (1, 4, 2, 32, range(9, 40), 1, 41, 0.3),
    ],
    ids=["3B", "two rows", "10B, three tokens", "28B", "a window"],
)
def test_capped_is_the_formula(
    batch: int, heads: int, kv_heads: int, width: int, slots: range, length: int, capacity: int, scale: float
) -> None:
    query = random_bfloat16(batch, heads, length, width, seed=1, scale=6)
    layer = random_bfloat16(2, batch, kv_heads, capacity, width, seed=2, scale=2)
    layer[:, :, :, slots.stop :] = np.nan  # what is not in use is not read
    layer[:, :, :, : slots.start] = np.nan
    mixed = metal_kernels.capped(as_bfloat16(query), as_bfloat16(layer), slots, scale, 50.0)
    keys, values = layer[:, :, :, slots.start : slots.stop].astype(np.float64)
    grouped = query.reshape(batch, kv_heads, -1, length, width)
    scores = 50 * np.tanh(np.einsum("bkgtd,bknd->bkgtn", grouped, keys) * scale / 50)
    seen = np.arange(len(slots)) <= np.arange(length)[:, None] + len(slots) - length
    weights = np.where(seen, np.exp(scores - scores.max(axis=-1, keepdims=True)), 0)
    weights /= weights.sum(axis=-1, keepdims=True)
    expected = np.einsum("bkgtn,bknd->bkgtd", weights, values).reshape(query.shape)
    actual = from_bfloat16(np.array(mixed.view(mx.uint16)))
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    print(f"error {error:.1e} of the largest")
    assert error < 2**-8  # half a step of bfloat16 at the largest


def test_capped_reads_its_inputs_by_their_strides() -> None:
    """As the model gives them: queries out of all heads' projections, and a buffer with a capacity; here that is part
    of a larger one, too. What lies between is NaN when the kernel runs (tools/metal/source.py)."""
    projected = as_bfloat16(random_bfloat16(2, 3, 16, 64, seed=1, scale=4))
    buffer = as_bfloat16(random_bfloat16(3, 4, 5, 37, 70, seed=2))
    query, layer = projected[:, :, 1:9].swapaxes(1, 2), buffer[1:, 1:3, 1:5, :33, 3:67]
    assert not np.asarray(query.view(mx.uint16)).flags.c_contiguous
    assert np.asarray(layer.view(mx.uint16)).strides[-2] == 140
    whole = [mx.contiguous(array) for array in (query, layer)]
    for slots in (range(31), range(7, 33)):
        found, expected = (metal_kernels.capped(*given, slots, 1 / 8, 50.0) for given in ((query, layer), whole))
        assert mx.array_equal(found, expected) and not mx.isnan(found).any()


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_a_model_with_both_kernels_is_the_model(family: str) -> None:
    raw = wide_config_json(family)
    model = model_of(raw, random_tensors(raw))
    for window in (False, True):
        model.use_sliding_window = window
        results = {}
        for names in ("", "add_norm,capped"):
            with device.use("gpu"), metal_kernels.use(names):
                logits, cache = model.prefill(pictures(model, 2), random_ids(2, 3), capacity=16)
                every = [logits]
                for ids in (random_ids(2, 1, seed=1), random_ids(2, 3, seed=2), random_ids(2, 1, seed=3)):
                    logits, cache = model.extend(ids, cache)
                    every.append(logits)
                mx.eval(every)
            results[names] = every
        for with_them, without in zip(*results.values(), strict=True):
            assert distance(with_them, without) < 2e-5


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
def test_doctor_compares_them_where_there_is_metal(family: str) -> None:
    raw = wide_config_json(family)
    model = model_of(raw, random_tensors(raw), "bfloat16")
    with device.use("gpu"):
        found = list(kernels.own_kernels(model))
    print(found)
    assert [check for check in found if not check.healthy] == []
    assert len(found) == (3 if family == "gemma2" else 1)


def test_names_are_checked() -> None:
    with pytest.raises(InputError, match="add_norms"), metal_kernels.use("add_norms"):
        pass
    with metal_kernels.use("add_norm, capped"), device.use("cpu"):
        assert not metal_kernels.wanted("capped")
        with device.use("gpu"):
            assert metal_kernels.wanted("capped")
    with device.use("gpu"):
        assert not metal_kernels.wanted("add_norm")
