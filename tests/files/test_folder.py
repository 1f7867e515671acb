"""A folder that is replaced is there at every moment, and what is not the writer's own stays, whatever breaks in."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pg_mlx.errors import InputError
from pg_mlx.files import folder as folder_module
from pg_mlx.files.exchange import exchange
from pg_mlx.files.folder import whole_folder


def owned(folder: Path) -> list[Path]:
    """Everything but what is called mine."""
    if (folder / "mine.txt").exists():
        raise InputError(f"{folder} holds mine.txt")
    return sorted(folder.iterdir())


def write(target: Path, content: str) -> None:
    with whole_folder(target, True, owned) as folder:
        (folder / "file").write_text(content)


@pytest.fixture(params=[True, False], ids=["exchanged", "renamed"])
def can(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the system exchanges names; where it does not, two renames do the same."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    works = exchange(tmp_path / "one", tmp_path / "other")
    for name in ("one", "other"):
        (tmp_path / name).rmdir()
    if not request.param:
        monkeypatch.setattr(folder_module, "exchange", lambda one, other: False)
    elif not works:
        pytest.skip("this disk cannot exchange names")
    return request.param


def test_the_target_is_there_at_every_moment(can: bool, tmp_path: Path) -> None:
    target, missing, looks, stop = tmp_path / "out", 0, 0, threading.Event()
    write(target, "first")

    def watch() -> None:
        nonlocal looks, missing
        while not stop.is_set():
            looks, missing = looks + 1, missing + (not target.exists())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for number in range(200):
            write(target, str(number))
    finally:
        stop.set()
        watcher.join()
    assert looks > 100 and not (can and missing)
    assert (target / "file").read_text() == "199"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("moment", ["before", "behind"])
def test_an_interruption_loses_nothing(moment: str, can: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C just before names are exchanged, and just behind that."""
    target, real = tmp_path / "out", folder_module.exchange
    write(target, "old")

    def interrupted(one: Path, other: Path) -> bool:
        monkeypatch.setattr(folder_module, "exchange", real)
        if moment == "behind":
            real(one, other)
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(target, "new")
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_comes_at_the_last_moment_stays(can: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, real = tmp_path / "out", folder_module.exchange
    write(target, "old")

    def late(one: Path, other: Path) -> bool:
        monkeypatch.setattr(folder_module, "exchange", real)
        (other / "mine.txt").write_text("mine")
        return real(one, other)

    monkeypatch.setattr(folder_module, "exchange", late)
    with pytest.raises(InputError, match="has changed meanwhile"):
        write(target, "new")
    assert (target / "file").read_text() == "old" and (target / "mine.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_writer_leaves_nothing_for_long(can: bool, tmp_path: Path) -> None:
    """Killed behind the exchange, its old folder is left under the temporary name; the next writer removes it."""
    target, left = tmp_path / "out", tmp_path / ".out.partial-999999999"
    write(target, "new")
    write(left, "old")
    write(target, "newer")
    assert (target / "file").read_text() == "newer" and not left.exists()


def test_names_are_exchanged_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    if exchange(tmp_path / "a", tmp_path / "b"):
        assert (tmp_path / "a").read_text() == "b"
        with pytest.raises(FileNotFoundError):
            exchange(tmp_path / "a", tmp_path / "nothere")
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())  # a system without the function
    before = (tmp_path / "a").read_text()
    assert exchange(tmp_path / "a", tmp_path / "b") is False and (tmp_path / "a").read_text() == before
