"""Fixtures of this folder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import tiny_checkpoint
from helpers.conversions import convert


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, in bfloat16; all columns are multiples of 128 but those of SigLIP's fc2: 300."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def source(tiny: Path) -> Path:
    """The same, as what is converted."""
    return tiny


@pytest.fixture(scope="module")
def earlier(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an earlier conversion wrote, in 4 bits."""
    folder = tmp_path_factory.mktemp("models") / "earlier"
    convert(source, folder, q_bits=4)
    return folder


@pytest.fixture(scope="module")
def old(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An earlier conversion, in 8 bits."""
    folder = tmp_path_factory.mktemp("models") / "old"
    convert(source, folder, q_bits=8)
    return folder
