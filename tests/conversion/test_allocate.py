"""Bits by gain per byte: what is chosen, and what a target means."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from helpers.models import one_line_error

from pg_mlx.conversion.allocate import LAW, Sensitive, allocate, allocate_fast
from pg_mlx.conversion.target import SizeTarget, choose_packing, packing_samples
from pg_mlx.quantization import Recipe
from pg_mlx.quantization.fast_widths import fast_widths

WIDTHS = (2, 3, 4, 5, 6, 8)


def sized(kl: float, one_bit: int, widths: tuple[int, ...] = WIDTHS) -> Sensitive:
    return Sensitive(kl, {bits: one_bit * bits for bits in widths})


def test_a_bit_goes_where_it_gains_most() -> None:
    """Of two equal sizes the one that costs ten times as much; of two equal costs the smaller one."""
    assert allocate([sized(0.1, 10), sized(0.01, 10)], 50)[-1].bits == [3, 2]
    assert allocate([sized(0.1, 10), sized(0.1, 20)], 70)[-1].bits == [3, 2]


def test_a_bit_divides_the_predicted_divergence() -> None:
    steps = allocate([sized(0.05, 8)], 8 * 8)
    assert [step.bits for step in steps] == [[bits] for bits in WIDTHS]
    assert [step.kl for step in steps] == pytest.approx([0.05 * LAW ** (3 - bits) for bits in WIDTHS])
    assert [step.bytes for step in steps] == [8 * bits for bits in WIDTHS]


def test_what_does_not_fit_is_left_out_and_smaller_ones_are_tried() -> None:
    assert allocate([sized(1.0, 100), sized(0.001, 7)], 2 * 107 + 20)[-1].bits == [2, 4]


def test_the_choice_is_near_the_best_there_is() -> None:
    items = [sized(0.03, 30), sized(0.002, 50), sized(0.01, 20), sized(0.0005, 90)]
    limit = 4 * 190
    best = min(
        sum(item.cost(bits) for item, bits in zip(items, each, strict=True))
        for each in itertools.product(WIDTHS, repeat=4)
        if sum(item.bytes[bits] for item, bits in zip(items, each, strict=True)) <= limit
    )
    found = allocate(items, limit)[-1]
    assert found.bytes <= limit and best <= found.kl <= 1.25 * best


def test_less_than_the_fewest_bits_stays_there() -> None:
    assert [step.bits for step in allocate([sized(1, 10)], 5)] == [[2]]


def test_fast_kernels_want_multiples() -> None:
    assert fast_widths(2048) == WIDTHS and fast_widths(2304) == (6, 8)
    assert fast_widths(192) == WIDTHS, "no width is fast, so none is better"


@pytest.mark.parametrize(
    ("kl", "limit", "bits"), [(0.015, 11 * 60, [6, 5]), (0.02, 7 * 60, [4, 3]), (1e-5, 13 * 60, [5, 8])]
)
def test_slow_widths_are_for_what_fast_ones_cannot_reach(kl: float, limit: int, bits: list[int]) -> None:
    """The first item is fast from 6 bits, as with 2304 columns. It gets them if that costs little, not if they do not
    fit or if other bits are much better."""
    items = [sized(kl, 60), sized(0.02, 60)]
    assert allocate_fast(items, [(6, 8), WIDTHS], limit).bits == bits


# --- options --------------------------------------------------------------------------------------------


def chosen(**options: object) -> object:
    names = ("quantize", "q_bits", "q_group_size", "q_mode", "q_recipe", "q_overrides", "q_method")
    given = {**dict.fromkeys(names), "quantize": False, **options}
    return choose_packing(**given)  # type: ignore[arg-type]


def test_a_target_is_a_size_and_a_method() -> None:
    assert chosen(target_size="1.6GB") == SizeTarget("size", 1.6e9, "--target-size 1.6GB")
    assert chosen(target_bits=4, q_method="mse") == SizeTarget("bits", 4.0, "--target-bits 4", "mse")
    assert isinstance(chosen(q_recipe="tiny"), Recipe) and chosen() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target_size": "1GB", "target_bits": 4.0}, "--target-size and --target-bits exclude each other"),
        ({"target_size": "1GB", "q_recipe": "tiny"}, "it and --q-recipe exclude each other"),
        ({"target_per_token": "1GB", "q_bits": 4}, "--target-per-token chooses the bits itself; it and --q-bits"),
        ({"target_bits": 4.0, "q_overrides": {"*": "8"}}, "it and --q-override exclude each other"),
        ({"target_bits": 1.9}, "--target-bits 1.9 is not between 2 and 8"),
        ({"target_bits": 8.1}, "--target-bits 8.1 is not between 2 and 8"),
        ({"target_bits": float("nan")}, "--target-bits nan is not between 2 and 8"),
        ({"target_size": "much"}, "'much' is not a size"),
        ({"target_size": "1GB", "q_method": "awq"}, "no method 'awq'"),
    ],
)
def test_wrong_targets_are_one_line(options: dict, words: str) -> None:
    with one_line_error(words):
        chosen(**options)


def test_without_pictures_a_recipe_is_named(tmp_path: Path) -> None:
    target = SizeTarget("size", 1e9, "--target-size 1GB")
    with one_line_error("--target-size needs pictures", "--calibration DIR", "--q-recipe paligemma"):
        packing_samples(target, None)
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(bytes([number]))
    with one_line_error("holds 3 different pictures; a target needs 16 or more"):
        packing_samples(target, tmp_path)
