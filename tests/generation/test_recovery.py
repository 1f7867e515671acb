"""A pass that fails is repeated row by row: nothing is reported twice, and only the row at fault fails."""

from __future__ import annotations

from collections import defaultdict

import pytest
from helpers.engine import alone, engine_of, examples, picture, requests
from hypothesis import given
from hypothesis import strategies as st

from pg_mlx.generation import Engine, Recovery, Request, Row
from pg_mlx.generation.recovery import _Reported


class Spoiled(Engine):
    """One whose pass fails, now and then, and always while a bad row is in it."""

    def __init__(self, breaks: list[int], bad: list[Request], late: bool):
        ready = engine_of("gemma2", 4)
        self.__dict__.update(vars(ready))
        self._breaks, self._bad, self._late = breaks, bad, late

    def _advance(self, *arguments) -> None:
        if self._late:
            super()._advance(*arguments)
        self._perhaps_fail()
        if not self._late:
            super()._advance(*arguments)

    def _prefill(self, pairs) -> None:
        self._perhaps_fail([row for row, _ in pairs])
        super()._prefill(pairs)

    def _perhaps_fail(self, more: list[Row] = []) -> None:  # noqa: B006
        if any(row.request is bad for row in (*self._rows, *more) for bad in self._bad):
            raise RuntimeError("a bad row")
        self._breaks[0] -= 1
        if self._breaks[0] == 0:
            del self._breaks[0]
            raise RuntimeError("no memory just now")


@examples
@given(
    asked=st.lists(st.tuples(requests(), st.booleans()), min_size=1, max_size=6),
    breaks=st.lists(st.integers(1, 12), max_size=2),
    late=st.booleans(),
)
def test_each_row_is_reported_once_and_as_it_is_alone(asked: list, breaks: list[int], late: bool) -> None:
    bad = [request for request, is_bad in asked if is_bad]
    engine = Recovery(lambda: Spoiled([*breaks, 10**9], bad, late))
    waiting = [request for request, _ in asked]
    rows: list[Row] = []
    seen, errors = defaultdict[Row, list[int]](list), dict[Row, Exception]()
    ended: list[Row] = []
    while waiting or engine.busy:
        while waiting and engine.free:
            rows.append(engine.add(waiting.pop(0)))
        for progress in engine.step():
            assert progress.row not in ended, "reported after its end"
            seen[progress.row] += progress.token_ids
            if progress.error:
                errors[progress.row] = progress.error
            if progress.error or progress.row.finish_reason:
                ended.append(progress.row)
    assert sorted(map(id, ended)) == sorted(map(id, rows))
    for row in rows:
        expected = alone("gemma2", row.request).token_ids
        if row in errors:
            assert seen[row] == expected[: len(seen[row])]
            assert row.request in bad or str(errors[row]) == "no memory just now"
        else:
            assert seen[row] == row.token_ids == expected


@examples
@given(asked=st.lists(requests(), min_size=2, max_size=4), break_at=st.integers(2, 9), cancel_at=st.integers(1, 30))
def test_a_row_cancelled_in_its_second_attempt_keeps_what_was_reported(
    asked: list[Request], break_at: int, cancel_at: int
) -> None:
    breaks = [break_at, 10**9]
    engine = Recovery(lambda: Spoiled(breaks, [], False))
    rows = [engine.add(request) for request in asked]
    seen = defaultdict[Row, list[int]](list)
    steps, failed = 0, set[Row]()
    while engine.busy:
        for progress in engine.step():
            failed |= {progress.row} if progress.error else set()
            seen[progress.row] += progress.token_ids
        steps += 1
        if steps == cancel_at:
            rows[-1].cancel()
    assert len(failed) <= 1  # if its neighbours were done when the pass broke
    for row in set(rows) - failed:
        assert seen[row] == row.token_ids and row.finish_reason
        assert not row.request.logprobs or len(row.logprobs) == len(row.token_ids)


def test_rows_that_fail_alone_are_counted_until_one_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    good, first, second = (Request([picture], [5, 6]) for picture in pictures(3))
    engine = Recovery(lambda: Spoiled([10**9], [first, second], False))
    for request in (first, good, second):
        engine.add(request)
    counts = []
    while engine.busy:
        for progress in engine.step():
            if progress.error or progress.row.finish_reason:
                counts.append(engine.failures)
    assert counts == [1, 0, 1]


def test_a_picture_that_cannot_be_encoded_ahead_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    (picture,) = pictures(1)
    engine = Recovery(lambda: engine_of("gemma2", 2))
    row = engine.add(Request([picture], [5, 6]))
    monkeypatch.setattr(Engine, "expect", lambda *_: 1 / 0)
    engine.expect([Request([picture], [7])])
    while engine.busy:
        assert all(progress.error is None for progress in engine.step())
    assert row.finish_reason


def pictures(count: int) -> list:
    return [picture(number) for number in range(count)]


@examples
@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(1, 4), max_size=8), st.integers(0, 12))
def test_what_was_reported_is_not_new(answer: list[int], sizes: list[int], broke_at: int) -> None:
    reported, heard = _Reported(), list[int]()
    row = Row(Request(pictures(1), [5]), 90, 1)
    for attempt in (answer[:broke_at], answer):
        row.token_ids = attempt
        reported.begin_again(row)
        first = 0
        for size in [*sizes, len(answer)]:
            heard += reported.new(attempt[first : first + size])
            first += size
    assert heard == answer


def test_an_attempt_that_differs_is_an_error() -> None:
    reported = _Reported(token_ids=[1, 2, 3])
    assert list(reported.new([1, 2])) == []
    with pytest.raises(RuntimeError, match="did not repeat"):
        reported.new([4])
    reported = _Reported(token_ids=[1, 2, 3])
    with pytest.raises(RuntimeError, match="did not repeat"):
        reported.new([1, 2], ended=True)
