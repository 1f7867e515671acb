"""The recipes for the published shapes are what the tool makes of the sensitivities that it keeps."""

from __future__ import annotations

import json

import pytest

from pg_mlx.conversion.bit_table import PUBLISHED
from tools.published_recipes import DEMO, SHAPES, WIDE, expected, recipe_of

demo, wide = (json.loads(path.read_text())["measured"]["kl"] for path in (DEMO, WIDE))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_recipe_is_what_its_tool_makes(shape: str) -> None:
    assert recipe_of(shape, demo, wide) == json.loads((PUBLISHED / f"{shape}-4bit.json").read_text())


def test_a_kind_costs_the_mean_of_its_shares_however_many_layers_there_are() -> None:
    one, other = {"a": [3.0, 1.0], "b": [4.0]}, {"a": [2.0], "b": [6.0]}  # shares of 1/2 and 1/4
    for layers in (2, 5):
        costs = expected("a", layers, one, other)
        assert len(costs) == layers and sum(costs) == pytest.approx((0.5 * 0.25) ** 0.5)
        assert costs[0] / costs[-1] == pytest.approx(3)
