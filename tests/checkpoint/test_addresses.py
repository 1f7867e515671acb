"""Addresses of the hub, and folders of its cache."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from helpers.forms import logits
from helpers.models import (
    Json,
    Tensors,
    one_line_error,
    same,
    write_folder,
)

from pg_mlx import load_model
from pg_mlx.checkpoint.hub_names import address, cached_snapshot, repository_of


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://huggingface.co/google/paligemma2-3b-pt-224", ("google/paligemma2-3b-pt-224", None)),
        ("http://huggingface.co/a/b/", ("a/b", None)),
        ("hf.co/a/b", ("a/b", None)),
        ("huggingface.co/a/b/tree/float16", ("a/b", "float16")),
        ("https://huggingface.co/a/b/blob/main/config.json?x=1#y", ("a/b", "main")),
        ("https://huggingface.co/a/b/resolve/main/x.npz", ("a/b/x.npz", "main")),
        ("hf://a/b", ("a/b", None)),
        ("hf://a/b@v1", ("a/b", "v1")),
        ("a/b", ("a/b", None)),
        ("a/b@v1.0", ("a/b", "v1.0")),
        ("./a/b@v1", ("./a/b@v1", None)),
        ("a/b@", ("a/b@", None)),
        ("./a/b", ("./a/b", None)),
        ("/a/b", ("/a/b", None)),
    ],
)
def test_addresses(
    given: str, expected: tuple[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert address(given) == expected
    assert address(given, "mine") == (expected[0], "mine")
    Path("hf.co/a/b").mkdir(parents=True)
    assert address("hf.co/a/b") == ("hf.co/a/b", None)


def test_pages_that_are_no_models_and_files_of_repositories() -> None:
    with one_line_error("not the page of a model"):
        address("https://huggingface.co/datasets/a/b")
    assert repository_of("a/b/x.npz") == "a/b"
    assert (
        repository_of("./b/x.npz") is None and repository_of("b/x.npz") is None and repository_of("/a/b/x.npz") is None
    )


def test_folders_of_the_cache(raw: Json, tensors: Tensors, expected: mx.array, tmp_path: Path) -> None:
    repo = tmp_path / "models--a--b"
    for name in ("blobs", "refs"):
        (repo / name).mkdir(parents=True)
    write_folder(repo / "snapshots" / ("0" * 40), raw, tensors)
    for path in (repo, repo / "snapshots"):
        assert same(logits(path), expected)
    (repo / "snapshots" / ("1" * 40)).mkdir()
    with one_line_error("2 snapshots"):
        load_model(repo)
    (repo / "refs" / "main").write_text("0" * 40)
    assert cached_snapshot(repo).name == "0" * 40 and same(logits(repo), expected)
