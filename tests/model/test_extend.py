"""Several tokens in one pass, part of the head, and rows that come and go: the cache's part in batches."""

from __future__ import annotations

import os
import subprocess
import sys

import mlx.core as mx
import pytest
from helpers.laws import examples, fixed, kinds, near, seeds
from helpers.models import (
    FAMILIES,
    VOCAB,
    distance,
    model_of,
    one_line_error,
    pictures,
    quantized,
    random_ids,
    random_tensors,
    same,
    wide_config_json,
)
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.side_by_side.settings import ROOT
from pg_mlx import PaliGemma
from pg_mlx.cache import KVCache

appended = st.lists(st.integers(1, 5), min_size=3, max_size=3)


def prefilled(model: PaliGemma, lengths: list[int], seed: int, capacity: int = 40) -> KVCache:
    features, ids = pictures(model, len(lengths), seed), random_ids(len(lengths), max(lengths), seed)
    return model.prefill(features, ids, capacity=capacity, prefix_lengths=lengths)[1]


@kinds
@examples
@given(length=st.integers(1, 8), rounds=st.lists(st.integers(1, 6), min_size=1, max_size=3), seed=seeds)
def test_extending_equals_stepping(kind: str, length: int, rounds: list[int], seed: int) -> None:
    model = fixed(kind)
    extended = stepped = prefilled(model, [length, length], seed)
    for number, count in enumerate(rounds):
        ids = random_ids(2, count, seed + number)
        logits, extended = model.extend(ids, extended)
        for place in range(count):
            expected, stepped = model.step(ids[:, place], stepped)
        near(logits, expected)
        assert extended.lengths == stepped.lengths


@kinds
@examples
@given(lengths=appended, rounds=st.lists(appended, min_size=1, max_size=3), seed=seeds)
def test_rows_may_append_different_numbers_of_tokens(
    kind: str, lengths: list[int], rounds: list[list[int]], seed: int
) -> None:
    """What stands behind a row's own tokens is never seen, neither now nor later."""
    model = fixed(kind)
    together = prefilled(model, lengths, seed)
    alone = [together.select([row]) for row in range(3)]
    for number, counts in enumerate(rounds):
        ids = random_ids(3, 5, seed + number)
        logits, together = model.extend(ids, together, counts)
        other = mx.where(mx.arange(5) < mx.array(counts)[:, None], ids, random_ids(3, 5, seed + 9))
        for row, count in enumerate(counts):
            for place in range(count):
                expected, alone[row] = model.step(other[row : row + 1, place], alone[row])
            near(logits[row : row + 1], expected)
    assert together.lengths == tuple(cache.lengths[0] for cache in alone)


@kinds
@examples
@given(first=appended, second=appended, data=st.data(), seed=seeds)
def test_rows_join_leave_and_get_room_without_touching_their_neighbours(
    kind: str, first: list[int], second: list[int], data: st.DataObject, seed: int
) -> None:
    model = fixed(kind)
    caches = [prefilled(model, first, seed), prefilled(model, second, seed + 1, capacity=20)]
    rows = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True))
    joined = caches[0].join(caches[1]).select(rows).grown(data.draw(st.sampled_from([10, 50])))
    ids = random_ids(6, 2, seed + 2)
    logits, _ = model.extend(ids[: len(rows)], joined)
    for place, row in enumerate(rows):
        expected, _ = model.extend(ids[place : place + 1], caches[row // 3].select([row % 3]))
        near(logits[place : place + 1], expected)


@kinds
def test_rows_that_become_equally_long_need_no_mask(kind: str) -> None:
    model = fixed(kind)
    cache = prefilled(model, [2, 4], 0)
    _, cache = model.extend(random_ids(2, 3), cache, [3, 1])
    assert len(set(cache.lengths)) == 1
    ids = random_ids(2, 1, 5)[:, 0]
    logits, _ = model.step(ids, cache)
    for row in range(2):
        near(logits[row : row + 1], model.step(ids[row : row + 1], cache.select([row]))[0])


@pytest.mark.parametrize("packed", [False, True], ids=["float", "packed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_of_the_head_is_that_part_of_the_logits(family: str, packed: bool) -> None:
    raw = wide_config_json(family)
    tensors = random_tensors(raw)
    if packed:
        raw, tensors, _ = quantized(raw, tensors, lambda module, _: module.startswith("language_model"))
    model = model_of(raw, tensors)
    features, ids = pictures(model), random_ids(1, 5)
    whole, cache = model.prefill(features, ids, capacity=12)
    next_whole, _ = model.step(ids[:, 0], cache)
    for vocab in (range(VOCAB), range(0, 90), range(17, 50), range(95, 96), [0, 7, 8, 95], [33]):
        part, cache = model.prefill(features, ids, capacity=12, vocab=vocab)
        next_part, _ = model.step(ids[:, 0], cache, vocab=vocab)
        for smaller, larger in ((part, whole), (next_part, next_whole)):
            assert distance(smaller, larger[:, mx.array(list(vocab))]) <= 1e-5
            assert smaller.dtype == mx.float32


@kinds
def test_logits_within_a_pass_are_those_of_its_beginning(kind: str) -> None:
    model = fixed(kind)
    cache = prefilled(model, [2, 4], 0)
    ids = random_ids(2, 4)
    logits, after = model.extend(ids, cache, [4, 2], after=[(0, 1), (0, 3), (1, 0)])
    assert after.lengths == (cache.lengths[0] + 4, cache.lengths[1] + 2)
    for place, (row, token) in enumerate([(0, 1), (0, 3), (1, 0)]):
        near(logits[place : place + 1], model.extend(ids[row : row + 1, : token + 1], cache.select([row]))[0])


TO_THE_BIT = """
import pg_mlx
from helpers.models import greedy, pictures, random_ids, same, tiny
for family in ("gemma", "gemma2"):
    model, lengths = tiny(family, 7), [6, 3, 5, 2]
    features, ids = pictures(model, 4), random_ids(4, 6)
    together = greedy(model, features, ids, 6, lengths)[1]
    for row, length in enumerate(lengths):
        alone = greedy(model, features[row : row + 1], ids[row : row + 1, :length], 6)[1]
        print(same(together[row], alone[0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere MLX has one BLAS, which sums in the order it likes")
def test_rows_of_a_batch_are_equal_to_the_bit_where_sums_have_one_order() -> None:
    """The reference BLAS, which MLX has on Linux if no other is found, adds a row's products up in the same order
    whatever stands beside it. A fast one chooses by the number of rows, which costs some 1e-6 of a logit."""
    environment = {**os.environ, "PG_MLX_BLAS": "none", "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, "-c", TO_THE_BIT], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True"] * 8, done.stderr


def test_impossible_counts_and_missing_room_are_errors() -> None:
    model = fixed("gemma")
    cache = prefilled(model, [4, 2], 0, capacity=10)
    for counts in ([1], [0, 1], [1, 4], [1, 1.5]):
        with one_line_error("counts"):
            model.extend(random_ids(2, 3), cache, counts)
    with one_line_error("full", "10"):
        model.extend(random_ids(2, 3), cache)
    assert same(model.extend(random_ids(2, 2), cache)[0], model.extend(random_ids(2, 2), cache)[0])
