"""A rank that dies or falls silent ends all of them."""

from __future__ import annotations

import signal
import time

import pytest

from benchmarks.parallel_ranks import Ranks, leading

pytestmark = pytest.mark.xdist_group("ranks")

MODELS = "benchmarks.parallel_cases"
SILENCE = 2.0


def seconds_until_ended(sent: signal.Signals, to: int) -> tuple[float, list[str], int]:
    """Two ranks are at work, and one gets a signal: how long the other one then lives, the lines of its stderr, and its
    exit code."""
    with Ranks([leading(MODELS, "endless", "pipeline", silence=SILENCE)]) as ranks:
        lead = ranks.processes[0].stdout
        assert lead is not None and lead.readline() == "answering\n"
        time.sleep(0.2)
        ranks.processes[to].send_signal(sent)
        start = time.monotonic()
        (done,) = ranks.finish([1 - to])
        return time.monotonic() - start, done.stderr.splitlines(), done.returncode


@pytest.mark.parametrize("to", [0, 1])
def test_a_rank_is_killed(to: int) -> None:
    seconds, lines, code = seconds_until_ended(signal.SIGKILL, to)
    assert seconds < 5 and code == 70
    assert [line for line in lines if line.startswith("pg_mlx:")] == [lines[-1]], lines


@pytest.mark.parametrize("to", [0, 1])
def test_a_rank_is_stopped(to: int) -> None:
    seconds, lines, code = seconds_until_ended(signal.SIGSTOP, to)
    assert SILENCE - 1 < seconds < SILENCE + 3 and code == 70
    assert lines == [f"pg_mlx: rank {1 - to} of 2 has heard nothing of the others for 2 s, so it ends"]


def test_idle_ranks_stay() -> None:
    """Signs of life come while rank 0 has nothing to ask; a follower that is stopped then is noticed, too."""
    with Ranks([leading(MODELS, "idle", "2.5", silence=1.0)]) as ranks:
        done = ranks.finish()
    assert [(one.returncode, one.stderr) for one in done] == [(0, ""), (0, "")]
    with Ranks([leading(MODELS, "idle", "60", silence=SILENCE)]) as ranks:
        lead = ranks.processes[0].stdout
        assert lead is not None and lead.readline() == "idle\n"
        ranks.processes[1].send_signal(signal.SIGSTOP)
        start = time.monotonic()
        (done_first,) = ranks.finish([0])
        assert time.monotonic() - start < SILENCE + 3 and done_first.returncode == 70
