"""A job that is killed at any moment goes on: no row is lost, none is doubled, and nothing is left over."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.batches import PROMPT, left_over, rows, run, start
from helpers.pictures import saved
from helpers.regions import scene

from pg_mlx.batch.shards import ShardFiles
from pg_mlx.cli import main
from pg_mlx.errors import PgMlxError
from pg_mlx.files.whole import write_whole

COUNT, SHARD = 40, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(COUNT):
        (folder / f"{number:03}.png").write_bytes(saved(scene((24, 24), number), "PNG"))
    return folder


def arguments(folder: Path, job: Path) -> tuple[str | Path, ...]:
    return (folder, *PROMPT, "--max-tokens", "2", "--to", job, "--shard", str(SHARD))


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of a run that nobody disturbs."""
    job = tmp_path_factory.mktemp("jobs") / "calm"
    assert main(["batch", *map(str, arguments(folder, job))]) == 0
    assert len(rows(job)) == COUNT
    return rows(job)


def wait_for_shards(job: Path, count: int) -> None:
    end = time.monotonic() + 120
    while len(list(job.glob("*.jsonl"))) < count:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(("shards", "both"), [(1, False), (4, True)])
def test_parts_that_are_killed_go_on(
    folder: Path, expected: list[dict[str, Any]], tmp_path: Path, shards: int, both: bool
) -> None:
    job = tmp_path / "job"
    parts = [(*arguments(folder, job), "--part", part) for part in ("1/2", "2/2")]
    first, second = (start(*part) for part in parts)
    wait_for_shards(job, shards)
    first.kill()
    if both:
        second.kill()
    for process in (first, second):
        process.communicate(timeout=120)
    before = {path.name: path.stat().st_mtime_ns for path in job.glob("*.jsonl")}
    for part in parts:
        assert main(["batch", *map(str, part)]) == 0
    assert rows(job) == expected and left_over(job) == []
    after = {path.name: path.stat().st_mtime_ns for path in job.glob("*.jsonl")}
    assert before.items() <= after.items(), "a whole shard is not answered again"


def test_two_processes_on_the_same_part(folder: Path, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    both = [start(*arguments(folder, tmp_path / "job")) for _ in range(2)]
    for process in both:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert rows(tmp_path / "job") == expected and left_over(tmp_path / "job") == []


def test_ctrl_c_keeps_what_is_whole(folder: Path, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    job = tmp_path / "job"
    process = start(*arguments(folder, job))
    wait_for_shards(job, 1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130 and "goes on where this run has ended" in error
    assert left_over(job) == [] and 0 < len(rows(job)) < COUNT
    assert rows(job) == [row for row in expected if row in rows(job)]
    done = run(*arguments(folder, job))
    assert done.returncode == 0 and "rows were there before" in done.stderr
    assert rows(job) == expected


# --- files ---------------------------------------------------------------------------------------------


def test_what_a_killed_process_leaves_is_removed_with_its_shard(tmp_path: Path) -> None:
    files = ShardFiles(tmp_path, "jsonl", False)
    for name in (".000001.jsonl.0a1b2c3d.partial", ".000002.jsonl.0a1b2c3d.partial", ".notes.partial", "notes.txt"):
        (tmp_path / name).write_text("half")
    files.write(1, [{"error": None}])
    assert left_over(tmp_path) == [".000002.jsonl.0a1b2c3d.partial", ".notes.partial", "notes.txt"]


def test_a_writer_whose_file_was_swept_is_no_failure(tmp_path: Path) -> None:
    files = ShardFiles(tmp_path, "jsonl", False)

    def fill(path: Path) -> None:
        path.write_text("half")
        files.write(1, [{"error": None}])  # another process is quicker

    assert write_whole(files.path(1), fill)
    assert [json.loads(line) for line in files.path(1).read_text().splitlines()] == [{"error": None}]
    assert left_over(tmp_path) == []


def test_a_full_disk_leaves_nothing(
    folder: Path, expected: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    job, sync, calls = tmp_path / "job", os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:  # file and folder of job.json and of two shards
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        assert main(["batch", *map(str, arguments(folder, job))]) == 1
    assert "cannot write" in capsys.readouterr().err.splitlines()[-1]
    assert left_over(job) == [] and rows(job) == expected[: 2 * SHARD]
    assert main(["batch", *map(str, arguments(folder, job))]) == 0
    assert rows(job) == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_device_that_is_full(tmp_path: Path) -> None:
    def fill(path: Path) -> None:
        path.symlink_to("/dev/full")
        path.write_text("rows")

    with pytest.raises(PgMlxError, match="No space left"):
        write_whole(tmp_path / "target", fill)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert write_whole(tmp_path / "a", lambda path: path.write_text("one") and None, replace=False)
    assert not write_whole(tmp_path / "a", lambda path: path.write_text("two") and None, replace=False)
    assert (tmp_path / "a").read_text() == "one" and left_over(tmp_path) == ["a"]
