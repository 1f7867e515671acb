"""Addresses of the hub and folders of its cache; weights that are no numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.commands import tiny_checkpoint
from helpers.forms import EMBEDDING, logits
from helpers.models import (
    Json,
    Tensors,
    one_line_error,
    same,
    write_folder,
)
from helpers.paths import CAT

import pg_mlx
from pg_mlx import load_model
from pg_mlx.checkpoint.hub_names import address, cached_snapshot, repository_of
from pg_mlx.cli import main


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", [f"{EMBEDDING}.weight", "language_model.model.norm.weight", "multi_modal_projector.linear.bias"]
)
def test_weights_that_are_no_numbers_are_not_converted(
    name: str, value: float, raw: Json, tensors: Tensors, tmp_path: Path
) -> None:
    tensors[name][0] = value
    folder = write_folder(tmp_path / "model", raw, tensors)
    options: list[Callable[[Path], object]] = [
        lambda target: pg_mlx.convert(folder, target, need_tokenizer=False, check=False),
        lambda target: pg_mlx.convert(folder, target, q_bits=8, q_group_size=32, need_tokenizer=False, check=False),
    ]
    for convert in options:
        with one_line_error(name, "NaN or infinite"):
            convert(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_too_large_for_float16_are_named(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    tensors[f"{EMBEDDING}.weight"][3, 3] = 1e6
    folder = write_folder(tmp_path / "model", raw, tensors)
    with one_line_error(EMBEDDING, "too large for float16"):
        pg_mlx.convert(folder, tmp_path / "out", dtype="float16", need_tokenizer=False, check=False)
    pg_mlx.convert(folder, tmp_path / "out", dtype="bfloat16", need_tokenizer=False, check=False)


def test_an_answer_of_nan_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not an empty answer. In a batch only of the row that has it."""
    folder = tiny_checkpoint(tmp_path / "model")
    path = next(folder.glob("*.safetensors"))
    weights = dict(mx.load(str(path)))
    name = next(key for key in weights if key.endswith("norm.weight") and "vision" not in key)
    weights[name] = mx.full(weights[name].shape, float("nan")).astype(weights[name].dtype)
    mx.save_safetensors(str(path), weights)
    assert main(["generate", "--model", str(folder), "--image", str(CAT), "--prompt", "caption en"]) == 1
    out, errors = capsys.readouterr()
    assert out == "" and "computes no numbers (NaN)" in errors and len(errors.splitlines()) == 1
