"""Targets that are links, mount points or files, and folders that change meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.checkpoints import PARTS_OF_A_FOLDER, names
from helpers.targets import convert, copied, everything

from pg_mlx.conversion.written import owned
from pg_mlx.errors import InputError, PgMlxError


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A file system on `folder`."""
    if shutil.which("mount") is None or subprocess.run(["mount", *options, str(folder)], check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
def test_targets_that_are_no_folder(force: bool, source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-file").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("no/such")
    before = everything(tmp_path)
    for name in ("file", "pipe", "to-file", "loop", "nowhere", "no/such", "file/below"):
        with pytest.raises(PgMlxError) as caught:
            convert(source, tmp_path / name, force=force)
        assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


def test_a_dangling_link_is_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("made")
    convert(source, tmp_path / "link")
    assert str((tmp_path / "link").readlink()) == "made" and names(tmp_path / "made") == PARTS_OF_A_FOLDER


def test_mount_points_stay(source: Path, earlier: Path, tmp_path: Path) -> None:
    """The target itself, a read-only one, one on another disk, and a mount point within."""
    target = tmp_path / "disk"
    target.mkdir()
    with mounted(target, "-t", "tmpfs", "tmpfs"):
        with pytest.raises(InputError, match="mount point"):
            convert(source, target, force=True)
        copied(earlier, target / "out")
        convert(source, target / "out", force=True)  # on another disk, but no disk of its own
        (target / "out" / "inner").mkdir()
        with mounted(target / "out" / "inner", "-t", "tmpfs", "tmpfs"):
            (target / "out" / "inner" / "x").write_text("mine")
            with pytest.raises(InputError, match="holds inner"):
                convert(source, target / "out", force=True)
            assert (target / "out" / "inner" / "x").read_text() == "mine"
        subprocess.run(["mount", "-o", "remount,ro", str(target)], check=True)
        (rest := everything(target)).pop("out/inner")
        with pytest.raises(PgMlxError):
            convert(source, target / "out", force=True)
        assert {name: content for name, content in everything(target).items() if name != "out/inner"} == rest


def test_what_appears_while_it_is_replaced_stays(source: Path, earlier: Path, tmp_path: Path) -> None:
    target = copied(earlier, tmp_path / "out")

    def appear(what: str, done: int, total: int) -> None:
        (target / "late.txt").write_text("mine")

    with pytest.raises(InputError, match="holds late"):
        convert(source, target, force=True, progress=appear)
    assert (target / "late.txt").read_text() == "mine" and names(tmp_path) == ["out"]


def test_folders_with_the_names_of_temporary_ones_stay(source: Path, earlier: Path, tmp_path: Path) -> None:
    """A killed run's are removed, others that only have such a name are not."""
    for state in ("partial", "replaced"):
        (tmp_path / f".out.{state}-999999999").mkdir()
        (tmp_path / f".out.{state}-999999999" / "mine.txt").write_text("mine")
    copied(earlier, tmp_path / ".out.replaced-999999998")
    before = everything(tmp_path)
    copied(earlier, tmp_path / "out")
    convert(source, tmp_path / "out", force=True)
    gone = {name for name in before if name not in everything(tmp_path)}
    assert gone and all(name.startswith(".out.replaced-999999998") for name in gone)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOTTY, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_cannot_sync_folders(
    number: int, source: Path, earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network disk: the conversion is complete all the same. Real faults are errors."""
    target, real = copied(earlier, tmp_path / "out"), os.fsync
    before = everything(target)

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EIO:
        with pytest.raises(PgMlxError, match="Input/output"):
            convert(source, target, force=True)
        assert everything(target) == before
    else:
        convert(source, target, force=True)
        assert owned(target) and everything(target) != before
    assert names(tmp_path) == ["out"]


def test_files_beside_the_target_need_not_be_readable(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").write_text("x")
    real = os.open

    def opened(path: object, *rest: object, **more: object) -> int:
        if str(path).endswith("theirs"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opened)
    convert(source, tmp_path / "out")
    assert names(tmp_path / "out") == PARTS_OF_A_FOLDER
