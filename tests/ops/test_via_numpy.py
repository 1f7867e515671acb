"""GELU and attention by NumPy are MLX's own, gradients included."""

from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx
import pytest
from helpers.models import distance, same
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx.ops import attention, device, gelu, via_numpy

FAR = [-1e20, -1e10, -200.0, -88.0, -20.0, -0.0, 0.0, 1e-30, 20.0, 88.0, 200.0, 1e20]
Function = Callable[..., mx.array]


@pytest.fixture(autouse=True)
def however_few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By NumPy, in many pieces, on three threads."""
    for ops in (attention, gelu):
        monkeypatch.setattr(ops, "LARGE_VALUES", 1)
        monkeypatch.setattr(ops, "CHUNK_VALUES", 50)
    monkeypatch.setattr(device, "cores", lambda: 3)
    via_numpy._pool.cache_clear()
    yield
    via_numpy._pool.cache_clear()


def plain_attention(softcap: float | None) -> Function:
    if softcap is None:
        return partial(attention._kernel, scale=0.3)
    return partial(attention.capped, scale=0.3, softcap=softcap)


def loss(function: Function, *inputs: mx.array) -> list[mx.array]:
    gradients = mx.grad(lambda *a: (function(*a) ** 2).sum(), argnums=tuple(range(len(inputs))))(*inputs)
    return list(gradients)


@pytest.mark.parametrize("name", ["gelu", "geglu"])
def test_gelu_is_mlxs(name: str) -> None:
    both = mx.random.normal((2, 7, 46)) * 6
    both[0, 0, :12] = mx.array(FAR)
    inputs = mx.split(both, 2, axis=-1)[: 1 if name == "gelu" else 2]  # not contiguous
    plain, function = getattr(gelu, f"_{name}"), getattr(gelu, name)
    result, expected = function(*inputs), plain(*inputs)
    assert not same(result, expected), "both are MLX's"
    assert (mx.abs(result - expected) <= 2e-6 * mx.abs(expected) + 1e-7).all().item()
    for actual, wanted in zip(
        loss(function, *(x[1:] for x in inputs)), loss(plain, *(x[1:] for x in inputs)), strict=True
    ):
        assert distance(actual, wanted) <= 1e-5 * mx.abs(wanted).max().item()
    assert same(mx.vmap(function)(*inputs), expected)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    length=st.integers(1, 9),
    keys=st.integers(1, 60),
    masked=st.sampled_from(["", "one row", "every row"]),
    softcap=st.sampled_from([None, 1.5]),
)
def test_attention_is_mlxs(
    batch: int, kv_heads: int, group: int, length: int, keys: int, masked: str, softcap: float | None
) -> None:
    query = mx.random.normal((batch, kv_heads * group, length, 8))
    key, value = (mx.random.normal((batch, keys, kv_heads, 8)).swapaxes(1, 2) for _ in range(2))
    rows = {"one row": 1, "every row": length}.get(masked)
    mask = None if rows is None else (mx.random.uniform(shape=(batch, 1, rows, keys)) < 0.5) | (mx.arange(keys) == 0)
    plain = plain_attention(softcap)
    function = partial(attention.attention, scale=0.3, softcap=softcap)
    assert distance(function(query, key, value, mask), plain(query, key, value, mask)) <= 1e-5
    actual, wanted = (loss(lambda *a: f(*a, mask), query, key, value) for f in (function, plain))  # noqa: B023
    for one, other in zip(actual, wanted, strict=True):
        assert distance(one, other) <= 1e-5 * max(1.0, mx.abs(other).max().item())


def test_sixteen_bits_stay_with_mlx() -> None:
    x = mx.random.normal((64, 64)).astype(mx.bfloat16)
    assert same(gelu.gelu(x), gelu._gelu(x))
    query = x.reshape(1, 2, 32, 64)
    plain = plain_attention(None)
    assert same(attention.attention(query, query, query, None, scale=0.3), plain(query, query, query, None))
