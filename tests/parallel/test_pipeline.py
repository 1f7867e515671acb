"""The layers of a decoder on several ranks."""

from __future__ import annotations

import pytest

from benchmarks.parallel_checks import BEFORE
from benchmarks.parallel_ranks import lead

pytestmark = pytest.mark.xdist_group("ranks")
MODELS = "benchmarks.parallel_cases"


@pytest.mark.parametrize(("ops_of_ranks", "shares", "names"), [
    ("cpu", "1:3", ("pg2", "demo-adapter")),
    ("gpu", "", ("pg1", "pg2-adapter", "demo-adapter")),
])  # fmt: skip
def test_logits_are_those_of_one_process(ops_of_ranks: str, shares: str, names: tuple[str, ...]) -> None:
    lead(2, MODELS, "pipeline_is_exact", shares, *names, ops=ops_of_ranks)


def test_messages_of_three_ranks() -> None:
    lead(3, "benchmarks.parallel_checks", "pipeline_messages", before=BEFORE.format(many_bytes=0), follower="Watched")


def test_requests_enter_and_leave() -> None:
    lead(2, MODELS, "order_law", "pipeline", "4")
