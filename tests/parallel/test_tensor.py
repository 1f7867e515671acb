"""Every layer divided among ranks."""

from __future__ import annotations

import pytest

from benchmarks.parallel_checks import BEFORE
from benchmarks.parallel_ranks import lead

pytestmark = pytest.mark.xdist_group("ranks")
MODELS = "benchmarks.parallel_cases"


@pytest.mark.parametrize(("ops_of_ranks", "shares", "names"), [
    ("cpu", "3:1", ("pg1",)), ("cpu", "2:1", ("demo",)), ("gpu", "", ("pg2",))
])  # fmt: skip
def test_logits_are_near(ops_of_ranks: str, shares: str, names: tuple[str, ...]) -> None:
    lead(2, MODELS, "tensor_is_near", shares, *names, ops=ops_of_ranks)


def test_all_ranks_see_the_same_bits() -> None:
    ask = (2, "benchmarks.parallel_checks", "tensor_ranks_are_alike", "pg2")
    lead(*ask, before=BEFORE.format(many_bytes=1 << 18), follower="Watched")


def test_which_logits_all_ranks_compute() -> None:
    lead(2, MODELS, "few_ids_need_no_message")


def test_requests_enter_and_leave() -> None:
    lead(2, MODELS, "order_law", "tensor", "3")
