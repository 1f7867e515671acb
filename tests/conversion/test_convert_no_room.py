"""Conversions that run out of disk, or may not write: one line, and all is as it was."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.checkpoints import contents, names
from helpers.commands import ROOT

import pg_mlx
from pg_mlx.conversion import pipeline
from pg_mlx.errors import PgMlxError
from pg_mlx.files import shards
from pg_mlx.files.arrays import write_arrays

convert = partial(pg_mlx.convert, q_bits=4, check=False)


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
