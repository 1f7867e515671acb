"""A box as the <loc> tokens of a prompt: what reading such tokens gives back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.models import one_line_error
from hypothesis import given, settings
from hypothesis import strategies as st

import pg_mlx
from pg_mlx import format_region, parse_regions

sizes = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
share = st.floats(0, 1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(size=sizes, xs=st.tuples(share, share), ys=st.tuples(share, share))
def test_reading_gives_the_box_back_within_half_a_bin(
    size: tuple[int, int], xs: tuple[float, float], ys: tuple[float, float]
) -> None:
    (x0, x1), (y0, y1) = sorted(xs), sorted(ys)
    width, height = size
    text = format_region((x0 * width, y0 * height, x1 * width, y1 * height), size)
    found = parse_regions(f"{text} it", size)
    if not found:  # less than a bin wide or high
        assert min(x1 - x0, y1 - y0) < 1.01 / 1023
        return
    for got, meant, side in zip(found[0].box, (x0, y0, x1, y1), (width, height) * 2, strict=True):
        assert abs(got / side - meant) <= 0.5 / 1023 + 1e-9


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    size=sizes,
    places=st.tuples(*[st.integers(0, 1023)] * 4).filter(lambda p: p[0] < p[2] and p[1] < p[3]),
)
def test_and_the_tokens_of_a_region_are_its_own(size: tuple[int, int], places: tuple[int, int, int, int]) -> None:
    text = "".join(f"<loc{place:04}>" for place in places)
    (region,) = parse_regions(text, size)
    assert format_region(region.box, size) == text


def test_they_are_rounded_as_in_big_vision_and_in_its_order() -> None:
    """Its order is y0 x0 y1 x1, and a coordinate of 0..1 becomes round(it * 1023), cut to 0..1023."""
    box, size = (10.3, 20.7, 333.3, 77.7), (400, 80)
    normalized = np.array([box[1] / 80, box[0] / 400, box[3] / 80, box[2] / 400])
    expected = np.clip(np.round(normalized * 1023), 0, 1023).astype(int)
    assert format_region(box, size) == "".join(f"<loc{place:04}>" for place in expected)
    assert format_region((-5, -1, 1e6, 1e6), size) == "<loc0000><loc0000><loc1023><loc1023>"
    assert format_region(np.array(box, np.float32), np.array(size)) == format_region(box, size)


@pytest.mark.parametrize(
    "box, size",
    [
        ((1, 2, 3), (9, 9)), ((1, 2, 3, "x"), (9, 9)), (None, (9, 9)), ((5, 0, 1, 2), (9, 9)), ((0, 5, 1, 2), (9, 9)),
        ((0, 0, float("nan"), 2), (9, 9)), ((0, 0, float("inf"), 2), (9, 9)), ((0, 0, 1, 2), (0, 9)),
        ((0, 0, 1, 2), (9,)), ((0, 0, 1, 2), (9.5, 9)), ((0, 0, 1, 2), None),
    ],
)  # fmt: skip
def test_what_is_no_box_is_named(box: Any, size: Any) -> None:
    with one_line_error(""):
        format_region(box, size)


def test_it_is_one_of_the_public_names() -> None:
    assert "format_region" in pg_mlx.__all__
