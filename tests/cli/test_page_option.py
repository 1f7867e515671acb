"""--page: one page of a TIFF or one frame of an animation, or an answer for each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pg_mlx.cli import main
from pg_mlx.cli.pictures import expand
from pg_mlx.demo import CHECKPOINT
from pg_mlx.errors import InputError
from pg_mlx.processor.images import count_pages, load_image

COLOURS = ["red", "lime", "blue"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A TIFF and an animation of three, a picture of one, and a damaged one."""
    first, *others = (Image.new("RGB", (16, 16), colour) for colour in COLOURS)
    for name in ("a.tif", "b.gif"):
        first.save(tmp_path / name, save_all=True, append_images=others)
    first.save(tmp_path / "c.png")
    (tmp_path / "d.tif").write_bytes(b"II*\0 damaged")
    return tmp_path


def test_all_makes_an_item_of_each(folder: Path) -> None:
    items = expand([str(folder)], ["ocr"], page="all")
    found = [Path(item.source).name for item in items]
    several = [f"{name}#page={number}" for name in ("a.tif", "b.gif") for number in (1, 2, 3)]
    assert found == [*several, "c.png", "d.tif"]
    assert len({item.name for item in items}) == len(items), "files about them do not replace each other"
    corners = [load_image(item.source).getpixel((3, 3)) for item in items[:6]]
    assert corners == 2 * [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert [count_pages(folder / name) for name in ("a.tif", "b.gif", "c.png", "a.tif#page=2")] == [3, 3, 1, 1]


def test_a_number_chooses_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (item,) = expand([str(folder / "a.tif")], page=2)
    assert load_image(item.source).getpixel((3, 3)) == (0, 255, 0)
    asked = ["--model", str(CHECKPOINT), "--image", str(folder / "a.tif"), "--prompt", "caption en", "--max-tokens=4"]
    asked += ["--dtype", "float32"]
    assert main(["generate", *asked, "--page", "4"]) == 2
    assert "3 pages" in capsys.readouterr().err
    assert main(["generate", *asked, "--frames", "3", "--format", "json"]) == 0
    out, errors = capsys.readouterr()
    assert json.loads(out)["image"].endswith("a.tif#page=3") and "of which one is read" not in errors


def test_an_answer_for_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is damaged is said in its turn; together they make one question."""
    asked = ["--model", str(CHECKPOINT), "--image", str(folder), "--prompt", "caption en", "--max-tokens", "2"]
    asked += ["--dtype", "float32"]
    assert main(["generate", *asked, "--page", "all", "--format", "jsonl"]) == 1
    out, errors = capsys.readouterr()
    assert len(out.splitlines()) == 7 and "d.tif" in errors
    asked[3] = str(folder / "b.gif")
    assert main(["generate", *asked, "--page", "all", "--format", "json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert main(["generate", *asked, "--page", "all", "--together", "--format", "json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


@pytest.mark.parametrize("page", ["0", "-1", "two", "1.5", "", "1-3"])
def test_other_pages_are_refused(page: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--image", str(folder / "a.tif"), "--prompt", "", f"--page={page}"]) == 2
    assert "neither a page's number, from 1, nor all" in capsys.readouterr().err


@pytest.mark.parametrize("page", [2, "all"])
def test_stdin_has_no_pages(page: int | str) -> None:
    with pytest.raises(InputError, match="--page is about files"):
        expand(["-"], page=page)
