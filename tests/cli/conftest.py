"""Fixtures of this folder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.commands import tiny_checkpoint
from helpers.pictures import CORRUPT, saved
from helpers.regions import scene


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pictures, five of them corrupt, and what is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(200):
        path = folder / f"p{number:03}.{'jpg' if number % 2 else 'png'}"
        data = saved(scene((8 + number % 31, 8 + number % 17), number), "JPEG" if number % 2 else "PNG")
        if number in CORRUPT:
            data = b"" if number == 120 else data[: len(data) // 2]
        path.write_bytes(data)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "below").mkdir()
    return folder
