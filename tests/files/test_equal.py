"""Copies of a file are found, and little is read for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx.files import equal
from pg_mlx.files.equal import first_equals


@settings(max_examples=50, deadline=None)
@given(contents=st.lists(st.sampled_from([b"", b"a", b"b", b"ab", b"ba"]), max_size=9))
def test_each_file_has_the_first_with_its_bytes(
    contents: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert list(first_equals(paths)) == [paths[contents.index(content)] for content in contents]


def test_what_cannot_be_read_equals_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    paths = [tmp_path / name for name in ("folder", "pipe", "missing", "folder", "pipe", "missing")]
    assert list(first_equals(paths)) == paths


def test_only_files_of_one_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = equal._digest
    monkeypatch.setattr(equal, "_digest", lambda path: (read.append(path.name), digest(path))[1])
    for name, content in (("a", b"1"), ("b", b"22"), ("c", b"3"), ("d", b"1")):
        (tmp_path / name).write_bytes(content)
    paths = [tmp_path / name for name in "abcd"]
    assert [path.name for path in first_equals(paths)] == ["a", "b", "c", "a"]
    assert sorted(read) == ["a", "c", "d"]
