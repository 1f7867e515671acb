"""What property tests of the model share: models of each kind, sizes of examples, and how equal results must be."""

from functools import cache

import mlx.core as mx
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from pg_mlx import PaliGemma

from .models import distance, tiny

TOLERANCE = 1e-5
"""Logits are below 10, so this is some ten roundings of float32."""

KINDS = ("gemma", "gemma2", "gemma2 with window")
kinds = pytest.mark.parametrize("kind", KINDS)
examples = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)


@cache
def fixed(kind: str) -> PaliGemma:
    """One random model of a kind, the same for all tests."""
    return tiny(kind.split()[0], seed=7, window="window" in kind)


def near(actual: mx.array, expected: mx.array) -> None:
    """Asserts that two arrays differ by rounding only."""
    assert distance(actual, expected) <= TOLERANCE
