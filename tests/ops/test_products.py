"""Products of the CPU backend by NumPy and in several streams are MLX's own products, gradients included."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from helpers.memory import growth
from helpers.models import (
    distance,
    greedy,
    model_of,
    one_line_error,
    pictures,
    quantized,
    random_ids,
    random_tensors,
    same,
    wide_config_json,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx.ops import device, products
from pg_mlx.quantization import Packed, Quantization

MODES = [
    *(Quantization(bits, group_size) for bits in (2, 4, 8) for group_size in (32, 64, 128)),
    *(Quantization(4, 32, "mxfp4"), Quantization(4, 16, "nvfp4"), Quantization(8, 32, "mxfp8")),
]


def packed(q: Quantization, rows: int, columns: int = 256) -> Packed:
    arrays = q.pack(mx.random.normal((rows, columns), key=mx.random.key(rows)))
    return Packed(q, arrays["weight"], arrays["scales"], arrays.get("biases"))


def dequantized(weight: Packed) -> mx.array:
    return weight.dequantize(mx.float32)


@settings(max_examples=40, deadline=None)
@given(q=st.sampled_from(MODES), rows=st.integers(1, 700), threads=st.integers(1, 3))
def test_unpacking_by_table_is_mlx_unpacking(q: Quantization, rows: int, threads: int) -> None:
    weight = packed(q, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "cores", lambda: threads)
        expected = dequantized(weight)
        # The same product and sum; a compiler may round them together.
        assert distance(products.unpack(weight), expected) <= 1e-6 * mx.abs(expected).max().item()


@pytest.mark.parametrize("q", [*MODES, Quantization(3, 64), Quantization(6, 64)], ids=str)
def test_three_ways_to_multiply_by_a_packed_weight(q: Quantization, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = packed(q, 300), mx.random.normal((5, 256))
    monkeypatch.setattr(products, "TILE", 70 * 256)  # five tiles, the last one smaller
    monkeypatch.setattr(products, "LARGE_WEIGHT", 20_000)
    monkeypatch.setattr(device, "cores", lambda: 3)  # three streams
    expected = x @ dequantized(weight).T
    assert distance(products.multiply_unpacked(x, weight), expected) <= 1e-4
    assert distance(products.multiply_packed(x, weight), expected) <= 1e-4
    loss = lambda product: mx.grad(lambda x: (product(x) ** 2).sum())(x)  # noqa: E731
    expected = loss(lambda x: x @ dequantized(weight).T)
    actual = loss(lambda x: products.multiply_unpacked(x, weight))
    assert distance(actual, expected) <= 1e-5 * mx.abs(expected).max().item()


def test_streams_serve_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server asks its model on a thread of its own, and another model may have been asked on the main thread."""
    monkeypatch.setattr(products, "LARGE_WEIGHT", 20_000)
    monkeypatch.setattr(device, "cores", lambda: 2)
    q, x = Quantization(4, 64), mx.random.normal((1, 256))
    weight = packed(q, 300)
    mx.eval(x, [a for a in weight[1:] if a is not None])
    expected = (x @ dequantized(weight).T).tolist()

    def distance_there() -> float:
        return distance(products.multiply_packed(x + 0, weight), mx.array(expected))

    assert distance_there() <= 1e-4
    for _ in range(2):
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(distance_there).result() <= 1e-4


def test_tiles_bound_what_is_unpacked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    q, x = Quantization(4, 64), mx.random.normal((20, 256))
    weight = packed(q, 20_000)
    monkeypatch.setattr(products, "TILE", 1000 * 256)
    products.multiply_unpacked(x, packed(q, 100))  # tables
    mx.eval(x, [a for a in weight[1:] if a is not None])
    with growth() as grown:
        mx.eval(products.multiply_unpacked(x, weight))
    floats = 20_000 * 256 * 4
    assert grown.peak < floats / 2


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_a_few_rows_by_a_large_float_weight(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "LARGE_WEIGHT", 1)
    x, weight = mx.random.normal((1, rows, 96)), mx.random.normal((130, 96))
    assert distance(products.multiply_floats(x, weight), x @ weight.T) <= 1e-4
    loss = lambda product: mx.grad(lambda *a: (product(*a) ** 2).sum(), argnums=(0, 1))(x, weight)  # noqa: E731
    for actual, expected in zip(loss(products.multiply), loss(lambda x, weight: x @ weight.T), strict=True):
        assert distance(actual, expected) <= 1e-5 * mx.abs(expected).max().item()
    assert same(mx.vmap(lambda row: products.multiply_floats(row, weight))(x), mx.vmap(lambda row: row @ weight.T)(x))


def test_the_table_of_rows_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    q = Quantization(4, 64)
    assert [products.unpacks(q, rows) for rows in (2, 3)] == [False, True]
    assert [products.unpacks(Quantization(6, 64), rows) for rows in (18, 19)] == [False, True]
    monkeypatch.setattr(products, "wanted_unpack_rows", products.wanted_unpack_rows.__wrapped__)  # not cached
    monkeypatch.setenv("PG_MLX_UNPACK_ROWS", "40")
    assert [products.unpacks(q, rows) for rows in (39, 40)] == [False, True]
    monkeypatch.setenv("PG_MLX_UNPACK_ROWS", "0")
    assert not products.unpacks(q, 10**6)
    monkeypatch.setenv("PG_MLX_UNPACK_ROWS", "many")
    with one_line_error("PG_MLX_UNPACK_ROWS", "many"):
        products.unpacks(q, 1)


@pytest.mark.parametrize("bits", [None, 4])
def test_evaluating_layers_in_between_changes_nothing(bits: int | None) -> None:
    raw = wide_config_json("gemma2")
    tensors = random_tensors(raw)
    if bits:
        raw, tensors, _ = quantized(raw, tensors, lambda module, _: module.startswith("language_model"), bits)
    model = model_of(raw, tensors)
    expected = greedy(model, pictures(model, 2), random_ids(2, 5), 3)[1]
    model.layers_at_once = 2
    assert distance(greedy(model, pictures(model, 2), random_ids(2, 5), 3)[1], expected) <= 1e-5
    with one_line_error("layers_at_once", "0"):
        model.layers_at_once = 0
