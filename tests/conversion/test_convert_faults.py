"""Conversions that are killed, interrupted, or run out of disk: nothing is lost, nothing is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from helpers.checkpoints import PARTS_OF_A_FOLDER, WEIGHTS, contents, names
from helpers.commands import KILLED_CONVERSION, ROOT
from helpers.models import one_line_error

import pg_mlx

convert = partial(pg_mlx.convert, q_bits=4, check=False)


@pytest.fixture(scope="module")
def right(source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that every conversion here should write."""
    folder = tmp_path_factory.mktemp("models") / "right"
    convert(source, folder)
    return (folder / WEIGHTS).read_bytes()


def signalled(
    number: int, last: int, source: Path, target: Path, renamed: bool = False
) -> subprocess.CompletedProcess[str]:
    """renamed: the system cannot exchange two names, so that each gets its own by a rename."""
    env = {**os.environ, **({"RENAMED": "1"} if renamed else {})}
    options = ["--hf-path", source, "--mlx-path", target, "--q-bits", 4, "--force", "--no-check"]
    command = [sys.executable, "-c", KILLED_CONVERSION, number, last, target.parent, *options]
    return subprocess.run(
        [*map(str, command)], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60
    )


@pytest.fixture(scope="module")
def events(source: Path, old: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, list[str]]:
    """What a conversion that replaces a folder does, with names exchanged (False) and renamed (True)."""
    found = {}
    for renamed in (False, True):
        target = Path(shutil.copytree(old, tmp_path_factory.mktemp("events") / "out"))
        done = signalled(0, 0, source, target, renamed)
        assert done.returncode == 0, done.stderr
        found[renamed] = json.loads(done.stdout.splitlines()[-1])
    return found


def swap(events: list[str]) -> tuple[int, int]:
    """When the old folder loses its name, and when the new one gets it; events are counted from 1. Where names are
    exchanged that is one moment."""
    _, *renames = (number for number, event in enumerate(events, 1) if event == "os.rename")  # the first is the shard's
    assert len(renames) == 1 or renames == [renames[0], renames[0] + 1]
    return renames[0], renames[-1]


# --- killed ---------------------------------------------------------------------------------------------

POINTS = [*((False, number / 14) for number in range(14)), *((False, point) for point in (-2, -1, 0, 1, 2, 4, 8, 11))]
POINTS += [(True, point) for point in (-1, 0, 1, 2, 8, 13)]
"""Fourteen parts of the run, and distances from the moment at which the folders change places: the last ones are within
the deletion of the old folder. True: by two renames."""


@pytest.mark.parametrize(("renamed", "point"), POINTS)
def test_a_killed_conversion_spares_the_old_folder_and_the_next_one_succeeds(
    renamed: bool, point: float, events: dict[bool, list[str]], source: Path, old: Path, right: bytes, tmp_path: Path
):
    away, into = swap(events[renamed])
    last = away + point if isinstance(point, int) else 1 + int(point * (away - 1))
    target = Path(shutil.copytree(old, tmp_path / "out"))
    assert signalled(signal.SIGKILL, last, source, target, renamed).returncode == -signal.SIGKILL
    if away < last <= into:
        assert renamed and not target.exists()
    elif last <= away:
        assert contents(target) == contents(old)
    else:
        assert names(target) == PARTS_OF_A_FOLDER and (target / WEIGHTS).read_bytes() == right
    convert(source, target, force=True)
    assert names(tmp_path) == ["out"] and names(target) == PARTS_OF_A_FOLDER
    assert (target / WEIGHTS).read_bytes() == right


@pytest.mark.parametrize("point", [0.0, 0.3, 0.6, 0.9])
def test_a_killed_conversion_to_a_new_name_leaves_nothing_under_it(
    point: float, events: dict[bool, list[str]], source: Path, right: bytes, tmp_path: Path
):
    before = swap(events[False])[0] - 3 * len(PARTS_OF_A_FOLDER)  # there is no old folder whose files are looked at
    last = 2 + int(point * (before - 2))
    assert signalled(signal.SIGKILL, last, source, tmp_path / "out").returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and len(names(tmp_path)) == 1
    convert(source, tmp_path / "out")  # no --force needed
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / WEIGHTS).read_bytes() == right


def test_between_the_renames_the_old_folder_gets_its_name_back(
    events: dict[bool, list[str]], source: Path, old: Path, tmp_path: Path
):
    target = Path(shutil.copytree(old, tmp_path / "out"))
    signalled(signal.SIGKILL, swap(events[True])[1], source, target, renamed=True)
    with one_line_error("exists already"):
        convert(source, target)
    assert contents(target) == contents(old) and names(tmp_path) == ["out"]


def test_what_another_conversion_is_writing_is_left_alone(source: Path, tmp_path: Path):
    with subprocess.Popen(["sleep", "60"]) as other:
        theirs = tmp_path / f".out.partial-{other.pid}"
        theirs.mkdir()
        convert(source, tmp_path / "out")
        assert theirs.is_dir()
        other.kill()
    convert(source, tmp_path / "out", force=True)
    assert names(tmp_path) == ["out"]


def test_a_folder_that_appears_meanwhile_is_not_replaced_unasked(source: Path, tmp_path: Path):
    target = tmp_path / "out"

    def appear(what: str, done: int, total: int) -> None:
        target.mkdir(exist_ok=True)
        (target / "precious.txt").write_text("mine")

    with one_line_error("appeared meanwhile"):
        convert(source, target, progress=appear)
    assert contents(target) == {"precious.txt": b"mine"} and names(tmp_path) == ["out"]


# --- interrupted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("renamed", "point"), [(False, 0.05), (False, 0.5), (False, 0.95), (False, 0), (True, 0), (True, 1)]
)
def test_ctrl_c_leaves_all_as_it_was(
    renamed: bool, point: float, events: dict[bool, list[str]], source: Path, old: Path, tmp_path: Path
):
    """At parts of the run, and at one of the moments at which folders change places."""
    target = Path(shutil.copytree(old, tmp_path / "out"))
    moments = swap(events[renamed])
    last = int(point * moments[0]) if isinstance(point, float) else moments[point]
    done = signalled(signal.SIGINT, last, source, target, renamed)
    assert (done.returncode, done.stderr, done.stdout) == (130, "convert.py: error: interrupted\n", "")
    assert contents(target) == contents(old) and names(tmp_path) == ["out"]
