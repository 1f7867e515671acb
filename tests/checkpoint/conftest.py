"""Fixtures of this folder's tests."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from helpers.forms import logits
from helpers.models import (
    Json,
    Tensors,
    config_json,
    random_tensors,
    write_folder,
)


@pytest.fixture(params=["gemma", "gemma2"])
def raw(request: pytest.FixtureRequest) -> Json:
    return config_json(request.param)


@pytest.fixture
def tensors(raw: Json) -> Tensors:
    return random_tensors(raw)


@pytest.fixture
def expected(raw: Json, tensors: Tensors, tmp_path: Path) -> mx.array:
    return logits(write_folder(tmp_path / "plain", raw, tensors))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw = config_json("gemma")
    return write_folder(tmp_path / "checkpoint", raw, random_tensors(raw))


@pytest.fixture
def weights(folder: Path) -> Path:
    return folder / "model.safetensors"
