"""A rank that dies or falls silent ends all of them; ranks that do not fit together load nothing."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
from helpers.paths import ROOT

from benchmarks.parallel_ranks import Ranks, leading, run, run_alone
from pg_mlx.demo import CHECKPOINT

pytestmark = pytest.mark.xdist_group("ranks")

MODELS = "benchmarks.parallel_cases"
SILENCE = 3.0
ASK = ("generate", "--image", str(ROOT / "tests" / "cat.jpg"), "--prompt", "caption en")


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
    assert lines == [f"pg_mlx: rank {1 - to} of 2 has heard nothing of the others for 3 s, so it ends"]


def test_idle_ranks_stay(tmp_path: Path) -> None:
    """Signs of life come while rank 0 has nothing to ask; a follower that is stopped then is noticed, too."""
    with Ranks([leading(MODELS, "idle", "4", silence=1.0)]) as ranks:
        done = ranks.finish()
    assert [(one.returncode, one.stderr) for one in done] == [(0, ""), (0, "")]
    with Ranks([leading(MODELS, "idle", "60", silence=SILENCE)]) as ranks:
        lead = ranks.processes[0].stdout
        assert lead is not None and lead.readline() == "idle\n"
        ranks.processes[1].send_signal(signal.SIGSTOP)
        start = time.monotonic()
        (done_first,) = ranks.finish([0])
        assert time.monotonic() - start < SILENCE + 3 and done_first.returncode == 70


def refused(size: int, *arguments: str, folders: tuple[Path, ...] = (ROOT,)) -> str:
    """The one line of a command that all ranks run, and rank 0 refuses."""
    first, *others = run(size, *ASK, *arguments, folders=folders)
    assert first.returncode == 2 and first.stdout == "", first
    assert [(one.returncode, one.stdout, one.stderr) for one in others] == [(0, "", "")] * (size - 1), others
    lines = [line for line in first.stderr.splitlines() if not line.startswith("no --model")]
    assert len(lines) == 1, lines
    return lines[0]


def test_other_files_on_a_rank(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        if name != "three":
            shutil.copytree(CHECKPOINT, tmp_path / name / "model")
    weights = tmp_path / "two" / "model" / "model-00001-of-00001.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    ask = (2, "--parallel", "pipeline", "--model", "./model")
    assert "has other files in ./model than rank 0" in refused(*ask, folders=(tmp_path / "one", tmp_path / "two"))
    line = refused(*ask, folders=(tmp_path / "one", tmp_path / "three"))
    assert "rank 1 on" in line and "model" in line, line


def test_another_version_on_a_rank() -> None:
    before = "import pg_mlx.parallel.agreement\npg_mlx.parallel.agreement.__version__ = '99'\n"
    commands = [leading(MODELS, "refusal", "pipeline", before=code) for code in ("", before)]
    with Ranks(commands) as ranks:
        first, second = ranks.finish()
    assert first.stdout.count("\n") == 1 and "runs pg_mlx 99 with MLX" in first.stdout
    assert (first.returncode, second.returncode, second.stdout, second.stderr) == (0, 0, "", "")


def test_what_cannot_be_shared() -> None:
    assert "6 layers cannot be divided among 7 ranks" in one_line("--shares", "1:1:1:1:1:1:1")
    assert "rank 0: this model needs" in one_line("--max-memory", "7MB")
    assert "is for 3 ranks, but there are 2" in refused(2, "--parallel", "pipeline", "--shares", "1:1:1")


def one_line(*arguments: str) -> str:
    """The error of a dry run."""
    done = run_alone("generate", "--parallel", "pipeline", "--dry-run", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    return done.stderr
