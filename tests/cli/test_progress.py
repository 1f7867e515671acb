"""Long work says how far it is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import tiny_checkpoint
from helpers.service import SCENE
from helpers.training_run import color_data, train

from pg_mlx.cli import main, progress
from pg_mlx.cli.progress import WorkProgress
from pg_mlx.demo import CHECKPOINT

pytestmark = pytest.mark.ops("cpu", reason="what stderr says does not depend on the operations")

DONE = re.compile(r"^(.+): (\d+)% done, .+ left$")


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each step, not one a minute."""
    monkeypatch.setattr(progress, "_EVERY_LOGGED_S", 0.0)


def lines_of(err: str, what: str) -> list[int]:
    """The percentages that the lines about something show."""
    found = [match for line in err.splitlines() if (match := DONE.match(line))]
    return [int(match[2]) for match in found if what in match[1]]


def test_a_line_in_a_log(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    with WorkProgress("packing", "B") as shown:
        for done in (0, 2, 8):
            shown.show(done, 8)
        shown.show(4, 8, "judging")
    one, other = capsys.readouterr().err.splitlines()  # none before there is an estimate, and none at the end
    assert one.startswith("packing: 25% done, ") and other.startswith("judging: 50% done, ")


def test_seldom_and_never(capsys: pytest.CaptureFixture[str]) -> None:
    with WorkProgress("packing", "B") as shown, WorkProgress("packing", "B", silent=True) as silent:
        for done in range(8):
            shown.show(done, 8)
            silent.show(done, 8)
    assert capsys.readouterr().err == ""


class ATerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = ATerminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with WorkProgress("packing", "B") as shown:
        shown.show(0, 8)
        time.sleep(0.15)  # tqdm draws ten times a second
        shown.show(4, 8, "judging")
    assert "packing: " in screen.getvalue() and "judging:  50%|" in screen.getvalue()
    assert screen.getvalue().endswith("\r"), "and it is gone at the end"
    before = len(screen.getvalue())
    with WorkProgress("packing", "B", after=60) as short, WorkProgress("packing", "B", silent=True) as silent:
        short.show(4, 8)
        silent.show(4, 8)
    assert len(screen.getvalue()) == before


def test_of_a_conversion(often: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny_checkpoint(tmp_path / "tiny")
    assert main(["convert", "--hf-path", str(source), "--mlx-path", str(tmp_path / "out"), "-q", "--no-check"]) == 0
    shown = lines_of(capsys.readouterr().err, "")
    assert len(shown) > 10 and shown == sorted(shown)


def test_of_training_and_its_scores(often: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = color_data(tmp_path / "data"), tmp_path / "out"
    assert train(CHECKPOINT, data, out, "--batch-size", "1", "--test", "--val-batches", "2") == 0
    err = capsys.readouterr().err
    assert lines_of(err, "checking pictures")
    assert lines_of(err, "validation") and lines_of(err, "testing")
    assert main(["eval", "--data", str(data), "--split", "train", "--batch-size", "2"]) == 0
    shown = lines_of(capsys.readouterr().err, "the demo")
    assert len(shown) > 3 and shown == sorted(shown)


def test_of_many_pictures(often: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *["-i", str(SCENE)] * 3, "-p", "ocr"]) == 0
    out, err = capsys.readouterr()
    assert [line[:6] for line in err.splitlines() if " of 3, " in line] == ["1 of 3", "2 of 3", "3 of 3"]
    assert "of 3," not in out
