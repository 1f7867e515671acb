"""Sources that are broken, or break while they are read: one line that says what, and nothing written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.checkpoints import GOLDEN, WEIGHTS, assert_same, names, read_all, stored
from helpers.commands import tiny_checkpoint

import pg_mlx
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.cli import main
from pg_mlx.conversion import pipeline
from pg_mlx.errors import PgMlxError
from pg_mlx.files.shards import ShardWriter

convert = partial(pg_mlx.convert, q_bits=4, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def _rewrite(folder: Path, change: Callable[[dict[str, mx.array]], object]) -> None:
    tensors = stored(folder)
    mx.eval(tensors)
    change(tensors)
    for path in folder.glob("model*"):
        path.unlink()
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)


NORM = "language_model.model.layers.1.input_layernorm.weight"
DOWN = "language_model.model.layers.2.mlp.down_proj.weight"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda folder: os.truncate(folder / WEIGHTS, 2_000_000), "truncated"),
    "half a header": (lambda folder: os.truncate(folder / WEIGHTS, 1000), "truncated"),
    "empty": (lambda folder: os.truncate(folder / WEIGHTS, 0), "truncated"),
    "missing tensor": (lambda folder: _rewrite(folder, lambda tensors: tensors.pop(NORM)), f"1 missing: {NORM}"),
    "wrong shape": (lambda folder: _rewrite(folder, lambda t: t.update({DOWN: t[DOWN].T})), f"{DOWN} is [256, 128]"),
    "surplus tensor": (lambda folder: _rewrite(folder, lambda t: t.update(spy=mx.zeros(3))), "1 surplus: spy"),
    "whole numbers": (lambda folder: _rewrite(folder, lambda t: t.update({DOWN: t[DOWN].astype(mx.int32)})), "int32"),
    "missing shard": (lambda folder: (folder / WEIGHTS).unlink(), "lacks 1 of 1 weight files"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "tokenizer is none": (lambda folder: (folder / "tokenizer.model").write_text("?"), "not a readable tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_source_is_one_line_and_exit_2(
    kind: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    damage, words = BAD[kind]
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    damage(folder)
    options = ["--hf-path", folder, "--mlx-path", tmp_path / "out", "-q", "--no-check"]
    assert main(["convert", *map(str, options)]) == 2
    out, errors = capsys.readouterr()
    assert out == "" and len(errors.splitlines()) == 1 and words in errors, errors
    assert names(tmp_path) == ["source"]


def midway(action: Callable[[], object]) -> Callable[[str, int, int], None]:
    """Something that happens to the source before its 30th module is read."""
    calls = iter(range(10_000))
    return lambda what, done, total: action() and None if next(calls) == 29 else None


def test_a_source_that_is_cut_short_midway_is_one_line(source: Path, tmp_path: Path):
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    with pytest.raises(PgMlxError, match="cannot be read") as caught:
        convert(folder, tmp_path / "out", progress=midway(lambda: os.truncate(folder / WEIGHTS, 100_000)))
    assert "\n" not in str(caught.value) and "weight" in str(caught.value)
    assert names(tmp_path) == ["source"]


def test_a_source_that_is_deleted_midway_can_be_read_to_its_end(source: Path, tmp_path: Path):
    """Its file is open, so it lives on without a name."""
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    convert(source, tmp_path / "right")
    convert(folder, tmp_path / "out", progress=midway((folder / WEIGHTS).unlink))
    assert not (folder / WEIGHTS).exists()
    assert_same(stored(tmp_path / "out"), stored(tmp_path / "right"))

    archive = tmp_path / "pg.npz"
    with np.load(GOLDEN / "pg1_big_vision.npz") as compressed:
        np.savez(archive, **compressed)  # stored, as the published ones are
    pg_mlx.convert(archive, tmp_path / "pg", check=False, need_tokenizer=False, progress=midway(archive.unlink))
    assert not archive.exists()
    assert_same(stored(tmp_path / "pg"), read_all(SafetensorsFolder(GOLDEN / "pg1_classic")))


def test_shards_and_side_files_that_vanish_midway_are_one_line(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline, "ShardWriter", partial(ShardWriter, shard_bytes=500_000))
    folder = tmp_path / "source"
    convert(source, folder, q_bits=8)
    *_, last = sorted(folder.glob("*.safetensors"))
    with pytest.raises(PgMlxError, match=last.name):
        convert(folder, tmp_path / "out", progress=midway(last.unlink))
    vocabulary = Path(shutil.copyfile(source / "tokenizer.model", tmp_path / "tokenizer.model"))
    conversion = pipeline.Conversion(source, tokenizer=vocabulary)
    vocabulary.unlink()
    with pytest.raises(PgMlxError, match=f"No such file or directory .{vocabulary}"):
        conversion.run(tmp_path / "out")
    assert names(tmp_path) == ["source"]
