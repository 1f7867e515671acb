"""Conversions that are killed, interrupted, or run out of disk: nothing is lost, nothing is left."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.checkpoints import PARTS_OF_A_FOLDER, WEIGHTS, contents, names
from helpers.commands import KILLED_CONVERSION, ROOT, tiny_checkpoint
from helpers.models import one_line_error

import pg_mlx
from pg_mlx.conversion import pipeline
from pg_mlx.errors import PgMlxError
from pg_mlx.files import shards
from pg_mlx.files.arrays import write_arrays

convert = partial(pg_mlx.convert, q_bits=4, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def old(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An earlier conversion, in 8 bits."""
    folder = tmp_path_factory.mktemp("models") / "old"
    convert(source, folder, q_bits=8)
    return folder


@pytest.fixture(scope="module")
def right(source: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that every conversion here should write."""
    folder = tmp_path_factory.mktemp("models") / "right"
    convert(source, folder)
    return (folder / WEIGHTS).read_bytes()


def signalled(number: int, last: int, source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    options = ["--hf-path", source, "--mlx-path", target, "--q-bits", 4, "--force", "--no-check"]
    command = [sys.executable, "-c", KILLED_CONVERSION, number, last, target.parent, *options]
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture(scope="module")
def events(source: Path, old: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a conversion that replaces a folder does; its last two renames are those of the target."""
    target = Path(shutil.copytree(old, tmp_path_factory.mktemp("events") / "out"))
    done = signalled(0, 0, source, target)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def swap(events: list[str]) -> tuple[int, int]:
    """When the old folder is renamed, and when the new one is; events are counted from 1."""
    renames = [number for number, event in enumerate(events, 1) if event == "os.rename"]
    assert len(renames) == 3 and renames[2] == renames[1] + 1  # the first gives the shard its name
    return renames[1], renames[2]


# --- killed ---------------------------------------------------------------------------------------------

POINTS = [*(number / 14 for number in range(14)), -2, -1, 0, 1, 2, 4, 8, 13]
"""Fourteen parts of the run, and distances from the first of the renames by which the folders change places: the last
ones are within the deletion of the old folder."""


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point:+}" if isinstance(point, int) else f"{point:.2f}")
def test_a_killed_conversion_spares_the_old_folder_and_the_next_one_succeeds(
    point: float, events: list[str], source: Path, old: Path, right: bytes, tmp_path: Path
):
    away, into = swap(events)
    last = away + point if isinstance(point, int) else 1 + int(point * (away - 1))
    target = Path(shutil.copytree(old, tmp_path / "out"))
    assert signalled(signal.SIGKILL, last, source, target).returncode == -signal.SIGKILL
    if last == into:
        assert not target.exists()
    elif last < into:
        assert contents(target) == contents(old)
    else:
        assert names(target) == PARTS_OF_A_FOLDER and (target / WEIGHTS).read_bytes() == right
    convert(source, target, force=True)
    assert names(tmp_path) == ["out"] and names(target) == PARTS_OF_A_FOLDER
    assert (target / WEIGHTS).read_bytes() == right


@pytest.mark.parametrize("point", [0.0, 0.3, 0.6, 0.9])
def test_a_killed_conversion_to_a_new_name_leaves_nothing_under_it(
    point: float, events: list[str], source: Path, right: bytes, tmp_path: Path
):
    before = swap(events)[0] - 3 * len(PARTS_OF_A_FOLDER)  # there is no old folder whose files are looked at
    last = 2 + int(point * (before - 2))
    assert signalled(signal.SIGKILL, last, source, tmp_path / "out").returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and len(names(tmp_path)) == 1
    convert(source, tmp_path / "out")  # no --force needed
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / WEIGHTS).read_bytes() == right


def test_between_the_renames_the_old_folder_gets_its_name_back(
    events: list[str], source: Path, old: Path, tmp_path: Path
):
    target = Path(shutil.copytree(old, tmp_path / "out"))
    signalled(signal.SIGKILL, swap(events)[1], source, target)
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


@pytest.mark.parametrize("point", [0.05, 0.5, 0.95, "first rename", "second rename"], ids=str)
def test_ctrl_c_leaves_all_as_it_was(point: float | str, events: list[str], source: Path, old: Path, tmp_path: Path):
    target = Path(shutil.copytree(old, tmp_path / "out"))
    renames = dict(zip(("first rename", "second rename"), swap(events), strict=True))
    last = int(point * renames["first rename"]) if isinstance(point, float) else renames[point]
    done = signalled(signal.SIGINT, last, source, target)
    assert (done.returncode, done.stderr, done.stdout) == (130, "convert.py: error: interrupted\n", "")
    assert contents(target) == contents(old) and names(tmp_path) == ["out"]


# --- no room --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own on `folder`."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_too_little_room_is_said_before_anything_is_written(source: Path, tmp_path: Path):
    with mounted(tmp_path / "disk", "size=1m") as disk:
        with pytest.raises(PgMlxError, match=r"only 1\.0 MB are free"):
            pg_mlx.convert(source, disk / "out", check=False)
        assert names(disk) == []


def test_a_full_disk_is_one_line_and_leaves_all_as_it_was(source: Path, tmp_path: Path):
    """In development mode, where Python (and from 3.13 always) tells of files that could not be flushed at exit."""
    code = (
        "import sys; from pg_mlx.cli import main; from pg_mlx.conversion import pipeline; "
        "pipeline.Conversion._require_space = lambda *_: None; "
        "sys.exit(main(['convert', *sys.argv[1:]], program='convert.py'))"
    )
    with mounted(tmp_path / "disk", "size=1m") as disk:
        (disk / "out").mkdir()
        (disk / "out" / "README.md").write_text("made for MLX by pg_mlx.")
        before = contents(disk / "out")
        options = ["--hf-path", source, "--mlx-path", disk / "out", "--force", "--no-check"]
        python = [sys.executable, "-X", "dev", "-W", "ignore", "-c", code]
        done = subprocess.run([*python, *map(str, options)], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr == f"convert.py: error: no space left to write {disk / 'out'}; nothing was changed\n"
        assert contents(disk / "out") == before and names(disk) == ["out"]


def test_a_read_only_disk_is_one_line(source: Path, tmp_path: Path):
    with mounted(tmp_path / "disk", "ro") as disk, pytest.raises(PgMlxError, match=r"cannot write .*Read-only"):
        convert(source, disk / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_one_line(source: Path, tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(PgMlxError, match=r"cannot write .*Permission denied"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("place", ["first bytes", "last bytes", "tokenizer", "model card"])
def test_writing_that_fails_is_one_line_and_leaves_all_as_it_was(
    place: str, number: int, source: Path, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target = Path(shutil.copytree(old, tmp_path / "out"))
    home, name, wanted = {
        "first bytes": (shards, "_write", lambda file, data: True),
        "last bytes": (shards, "_write", lambda file, data: bytes(data[8:9]) == b"{"),  # a shard's head
        "tokenizer": (pipeline.shutil, "copyfile", lambda path, to: True),
        "model card": (Path, "write_text", lambda path, text: path.name == "README.md"),
    }[place]
    original, failed = getattr(home, name), []

    def fail(*arguments):
        if wanted(*arguments):
            failed.append(arguments)
            raise OSError(number, os.strerror(number))
        return original(*arguments)

    monkeypatch.setattr(home, name, fail)
    words = (
        "cannot write .*Input/output error" if number == errno.EIO else "no space left to write .*nothing was changed"
    )
    with pytest.raises(PgMlxError, match=words) as caught:
        convert(source, target, force=True)
    assert failed and "\n" not in str(caught.value) and caught.value.exit_code == 1
    assert contents(target) == contents(old) and names(tmp_path) == ["out"]


@pytest.mark.parametrize("short", [1, 2])
def test_side_files_count_when_there_is_too_little_room(
    short: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Room for the weights alone is not enough; what is asked for is enough for all that is written."""
    conversion = pipeline.Conversion(source)
    needed = conversion._needed_space()
    beside = sum(path.stat().st_size for path in conversion.checkpoint.side_files.values())
    assert needed > conversion.expected_bytes() + beside
    free = conversion.expected_bytes() if short == 1 else needed - 1
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(needed, 0, free))
    with pytest.raises(PgMlxError, match="are free"):
        conversion.run(tmp_path / "out", check=False)
    assert names(tmp_path) == []
    monkeypatch.undo()
    conversion.run(tmp_path / "out", check=False)
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert written <= needed


def test_a_disk_that_is_full_for_the_masks_is_one_line(source: Path, tmp_path: Path):
    """MLX's own writer would say nothing of it."""
    with mounted(tmp_path / "disk", "size=64k") as disk, pytest.raises(OSError, match="No space left") as caught:
        write_arrays(disk / "mask_decoder.weights", {"a": mx.zeros(100_000)})
    assert caught.value.errno == errno.ENOSPC
