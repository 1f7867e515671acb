"""Whoever reads an answer that was begun again reads it once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pg_mlx.generation.told import Told


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(1, 4), max_size=8), st.integers(0, 12))
def test_an_answer_begun_again_is_told_once(answer: list[int], sizes: list[int], broke_at: int) -> None:
    told, heard = Told(), list[int]()
    for attempt in (answer[:broke_at], answer):
        told.begin_again()
        first = 0
        for size in [*sizes, len(answer)]:
            heard += told.new(attempt[first : first + size])
            first += size
    assert heard == answer and bool(told) == bool(answer)


def test_an_attempt_that_says_something_else_is_an_error() -> None:
    told = Told()
    told.new([1, 2, 3])
    told.begin_again()
    assert told.new([1, 2]) == []
    with pytest.raises(RuntimeError, match="did not repeat"):
        told.new([4])
