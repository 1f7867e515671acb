"""The examples of docs/training-data.md are read as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.paths import ROOT
from PIL import Image

from pg_mlx.training.dataset import read_dataset
from pg_mlx.training.example import Example
from pg_mlx.training.formats import DataOptions

PAGE = (ROOT / "docs" / "training-data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
BOX = "<loc0107><loc0160><loc0426><loc0480> cat"
"""What the page says of the box that COCO and VIA have on it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (640, 480)).save(tmp_path / name)
    return tmp_path


def rows(folder: Path, name: str, text: str, options: DataOptions | None = None) -> list[tuple[str, str]]:
    (folder / name).write_text(text, encoding="utf-8")
    found: tuple[Example, ...] = read_dataset(folder / name, options, val_share=0).train
    return [(row.prefix, row.suffix) for row in found]


def test_blocks() -> None:
    assert len(BLOCKS) == 6 and BOX in PAGE


def test_jsonl(folder: Path) -> None:
    assert rows(folder, "x.jsonl", BLOCKS[0])[1:4:2] == [("answer en how many cats?", "1"), ("detect cat ; dog", "")]
    options = DataOptions(prefix="caption en")
    assert rows(folder, "y.jsonl", BLOCKS[1], options) == [("caption en", "a cat on a mat"), ("caption en", "a dog")]
    assert rows(folder, "z.jsonl", BLOCKS[2].replace("\n", "")) == [("caption en", "a cat on a mat")]


def test_coco_and_via(folder: Path) -> None:
    assert rows(folder, "x.json", BLOCKS[3]) == [("detect cat ; dog", BOX)]
    assert rows(folder, "y.json", BLOCKS[5]) == [("detect cat", BOX)]
    (segment,) = rows(folder, "x.json", BLOCKS[3], DataOptions(task="segment"))
    assert segment == ("segment cat ; dog", ""), "the encoder writes it"


def test_texts(folder: Path) -> None:
    for line in BLOCKS[4].splitlines():
        name, _, text = line.partition("    ")
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if text:
            path.write_text(text)
        else:
            Image.new("RGB", (8, 8)).save(path)
    found = read_dataset(folder / "cats", DataOptions(prefix="caption en"), val_share=0).train
    assert [row.suffix for row in found] == ["a cat on a mat", "a dog"]
