"""Weights that are no numbers, or too large for their type, are named before they do harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.commands import tiny_checkpoint
from helpers.forms import EMBEDDING
from helpers.models import (
    Json,
    Tensors,
    one_line_error,
    write_folder,
)
from helpers.paths import CAT

import pg_mlx
from pg_mlx.cli import main


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
