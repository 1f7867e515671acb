"""Products of the CPU backend by NumPy and in several streams are MLX's own products, gradients included."""

from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import (
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

from pg_mlx import backend, host
from pg_mlx.quantization import Quantization

MODES = [
    *(Quantization(bits, group_size) for bits in (2, 4, 8) for group_size in (32, 64, 128)),
    *(Quantization(4, 32, "mxfp4"), Quantization(4, 16, "nvfp4"), Quantization(8, 32, "mxfp8")),
]


def packed(q: Quantization, rows: int, columns: int = 256) -> tuple[mx.array, mx.array, mx.array | None]:
    arrays = q.pack(mx.random.normal((rows, columns), key=mx.random.key(rows)))
    return arrays["weight"], arrays["scales"], arrays.get("biases")


def dequantized(q: Quantization, weight: mx.array, scales: mx.array, biases: mx.array | None) -> mx.array:
    return mx.dequantize(weight, scales, biases, q.group_size, q.bits, q.mode, dtype=mx.float32)


@settings(max_examples=40, deadline=None)
@given(q=st.sampled_from(MODES), rows=st.integers(1, 700), threads=st.integers(1, 3))
def test_unpacking_by_table_is_mlx_unpacking(q: Quantization, rows: int, threads: int) -> None:
    arrays = packed(q, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "cores", lambda: threads)
        expected = dequantized(q, *arrays)
        # The same product and sum; a compiler may round them together.
        assert distance(host.unpack(q, *arrays, 256), expected) <= 1e-6 * mx.abs(expected).max().item()


@pytest.mark.parametrize("q", [*MODES, Quantization(3, 64), Quantization(6, 64)], ids=str)
def test_three_ways_to_multiply_by_a_packed_weight(q: Quantization, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, x = packed(q, 300), mx.random.normal((5, 256))
    monkeypatch.setattr(host, "TILE", 70 * 256)  # five tiles, the last one smaller
    monkeypatch.setattr(host, "LARGE", 20_000)
    monkeypatch.setattr(host, "cores", lambda: 3)  # three streams
    expected = x @ dequantized(q, *arrays).T
    assert distance(host.multiply_unpacked(x, q, *arrays), expected) <= 1e-4
    assert distance(host.multiply_packed(x, q, *arrays), expected) <= 1e-4
    loss = lambda product: mx.grad(lambda x: (product(x) ** 2).sum())(x)  # noqa: E731
    expected = loss(lambda x: x @ dequantized(q, *arrays).T)
    actual = loss(lambda x: host.multiply_unpacked(x, q, *arrays))
    assert distance(actual, expected) <= 1e-5 * mx.abs(expected).max().item()


def test_streams_serve_any_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server asks its model on a thread of its own, and another model may have been asked on the main thread."""
    monkeypatch.setattr(host, "LARGE", 20_000)
    monkeypatch.setattr(host, "cores", lambda: 2)
    q, x = Quantization(4, 64), mx.random.normal((1, 256))
    arrays = packed(q, 300)
    mx.eval(x, [a for a in arrays if a is not None])
    expected = (x @ dequantized(q, *arrays).T).tolist()

    def distance_there() -> float:
        return distance(host.multiply_packed(x + 0, q, *arrays), mx.array(expected))

    assert distance_there() <= 1e-4
    for _ in range(2):
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(distance_there).result() <= 1e-4


def test_tiles_bound_what_is_unpacked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    q, x = Quantization(4, 64), mx.random.normal((20, 256))
    arrays = packed(q, 20_000)
    monkeypatch.setattr(host, "TILE", 1000 * 256)
    host.multiply_unpacked(x, q, *packed(q, 100))  # tables
    mx.eval(x, [a for a in arrays if a is not None])
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(host.multiply_unpacked(x, q, *arrays))
    floats = 20_000 * 256 * 4
    assert mx.get_peak_memory() - before < floats / 2


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_a_few_rows_by_a_large_float_weight(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "LARGE", 1)
    x, weight = mx.random.normal((1, rows, 96)), mx.random.normal((130, 96))
    assert distance(host.multiply(x, weight), x @ weight.T) <= 1e-4
    loss = lambda product: mx.grad(lambda *a: (product(*a) ** 2).sum(), argnums=(0, 1))(x, weight)  # noqa: E731
    for actual, expected in zip(loss(host.multiply), loss(lambda x, weight: x @ weight.T), strict=True):
        assert distance(actual, expected) <= 1e-5 * mx.abs(expected).max().item()
    assert same(mx.vmap(lambda row: host.multiply(row, weight))(x), mx.vmap(lambda row: row @ weight.T)(x))


def test_the_table_of_rows_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    q = Quantization(4, 64)
    assert [backend.unpacks(q, rows) for rows in (2, 3)] == [False, True]
    assert [backend.unpacks(Quantization(6, 64), rows) for rows in (18, 19)] == [False, True]
    monkeypatch.setattr(backend, "wanted_unpack_rows", backend.wanted_unpack_rows.__wrapped__)  # not cached
    monkeypatch.setenv("PG_MLX_UNPACK_ROWS", "40")
    assert [backend.unpacks(q, rows) for rows in (39, 40)] == [False, True]
    monkeypatch.setenv("PG_MLX_UNPACK_ROWS", "0")
    assert not backend.unpacks(q, 10**6)
    monkeypatch.setenv("PG_MLX_UNPACK_ROWS", "many")
    with one_line_error("PG_MLX_UNPACK_ROWS", "many"):
        backend.unpacks(q, 1)


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
