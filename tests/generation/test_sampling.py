"""What the options leave in the draw, and how often each token is drawn."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from helpers.models import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx.generation import SamplingOptions

EIGHT = mx.log(mx.array([0.3, 0.02, 0.25, 0.2, 0.1, 0.08, 0.04, 0.01]))
DRAWS = 40_000


def drawn(**options: float) -> np.ndarray:
    """How often each of eight tokens is drawn, as shares."""
    sample = SamplingOptions(**options).sampler(8)
    tokens = sample(mx.broadcast_to(EIGHT, (DRAWS, 8)))
    return np.bincount(np.array(tokens), minlength=8) / DRAWS


@pytest.mark.parametrize(
    "options, left",
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        (dict(top_k=1), [0]),
        (dict(top_k=3), [0, 2, 3]),
        (dict(top_k=100), [0, 1, 2, 3, 4, 5, 6, 7]),
        (dict(top_p=1e-9), [0]),
        (dict(top_p=0.29), [0]),
        (dict(top_p=0.31), [0, 2]),
        (dict(top_p=0.76), [0, 2, 3, 4]),
        (dict(min_p=1.0), [0]),
        (dict(min_p=0.6), [0, 2, 3]),
        (dict(min_p=0.1), [0, 2, 3, 4, 5, 6]),
        (dict(min_p=0.6, top_k=2), [0, 2]),
        (dict(top_p=0.31, top_k=5, min_p=0.01), [0, 2]),
        (dict(top_p=0.31, top_k=1 << 60), [0, 2]),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(options: dict, left: list[int], temperature: float) -> None:
    """Filters look at the probabilities before the temperature, the draw at those after."""
    weights = np.zeros(8)
    weights[left] = np.exp(np.array(EIGHT)[left] / temperature)
    expected = weights / weights.sum()
    found = drawn(temperature=temperature, seed=3, **options)
    assert (found[expected == 0] == 0).all()
    deviation = np.sqrt(expected * (1 - expected) / DRAWS)
    assert (np.abs(found - expected) <= 4.5 * deviation).all()


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-6])
def test_a_temperature_that_is_hardly_there_is_greedy(temperature: float) -> None:
    assert drawn(temperature=temperature, seed=3)[0] == 1


@pytest.mark.parametrize("temperature", [1e30, 1.7e308])
def test_without_end_all_are_as_likely(temperature: float) -> None:
    assert np.abs(drawn(temperature=temperature, seed=3) - 1 / 8).max() < 0.02


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    size=st.integers(1, 40),
    top_k=st.integers(0, 45),
    top_p=st.floats(0.01, 1.0),
    min_p=st.sampled_from([0.0, 0.03, 0.5]),
    seed=st.integers(0, 999),
)
def test_what_is_drawn_is_what_mlx_lm_would_draw_from(
    size: int, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p

    logits = mx.random.normal((1, size), key=mx.random.key(seed)) * 2
    left = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    if top_p < 1:
        left = apply_top_p(left, top_p)
    if min_p > 0:
        left = apply_min_p(left, min_p)
    if 0 < top_k < size:
        left = apply_top_k(left, top_k)
    options = dict(temperature=50.0, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    tokens = SamplingOptions(**options).sampler(size)(mx.broadcast_to(logits, (3000, size)))
    assert set(tokens.tolist()) == set(np.flatnonzero(np.isfinite(np.array(left[0]))).tolist())


def test_draws_depend_on_their_seed_alone() -> None:
    logits = mx.zeros((1, 5000))

    def draws(seed: int | None) -> list[int]:
        sample = SamplingOptions(temperature=1.0, seed=seed).sampler(5000)
        tokens = []
        for _ in range(6):
            tokens.append(sample(logits).item())
            mx.random.uniform()  # somebody else draws as well
        return tokens

    mx.random.seed(1)
    first, other = draws(7), draws(8)
    mx.random.seed(2)
    assert draws(7) == first != other and len(set(first)) > 3
    mx.random.seed(2)
    unseeded = draws(None)
    mx.random.seed(2)
    assert draws(None) != unseeded


@pytest.mark.parametrize("temperature", [-1, float("inf"), float("nan"), 10**400])
def test_temperatures_that_are_none(temperature: float) -> None:
    with one_line_error("temperature"):
        SamplingOptions(temperature=temperature)


def test_barred_ids_are_never_chosen() -> None:
    """<image> and gaps, greedy and drawn, whatever their logits; all others keep theirs bit by bit."""
    from pg_mlx.generation.sampling import bar

    assert bar((), 9) is None
    mask = bar({3, 5}, 9)
    assert mask is not None
    logits = mx.random.normal((2, 9), key=mx.random.key(1)).at[:, mx.array([3, 5])].add(50.0)
    barred = logits + mask
    assert {*mx.argmax(barred, axis=-1).tolist()}.isdisjoint({3, 5})
    rest = mx.array([0, 1, 2, 4, 6, 7, 8])
    assert mx.array_equal(barred[:, rest], logits[:, rest]).item()
    sampler = SamplingOptions(temperature=5.0, seed=3).sampler(9)
    assert not {sampler(barred[:1]).item() for _ in range(60)} & {3, 5}
