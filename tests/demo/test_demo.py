"""The bundled checkpoint answers right about its own kind of picture, and sanely about any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.commands import CAT, assert_one_line, run
from PIL import Image, ImageDraw

import pg_mlx
from pg_mlx.demo import CHECKPOINT, PICTURES

SCENE = CHECKPOINT.parent / "scene.png"
RED_CIRCLE = (0.177, 0.070, 0.505, 0.320)  # the truth of the scene, which is test seed 3000015 of demo/scenes.py


@pytest.fixture(scope="module")
def loaded() -> tuple[pg_mlx.PaliGemma, pg_mlx.Processor]:
    return pg_mlx.load(CHECKPOINT)


def drawing() -> Image.Image:
    picture = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(picture).line([(10, 10), (250, 180), (30, 150)], fill="black", width=5)
    return picture


def test_everything_fits_in_eight_megabytes():
    files = [path for path in CHECKPOINT.parent.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) <= 8e6
    assert len(PICTURES) == 4 and SCENE in PICTURES


@pytest.mark.parametrize(
    ("name", "text", "caption"),
    [  # the truths of test seeds 3000014, 3000057 and 3000046
        ("dog", "dog", "an orange cross, a yellow triangle, a green circle and a red square"),
        ("clutter", "70", "a red triangle, a purple square, a green cross and a purple cross"),
        ("portrait", "30", "an orange triangle, an orange star, a red circle and a yellow cross"),
    ],
)
def test_the_other_pictures_are_read_and_named(loaded, name: str, text: str, caption: str):
    picture = CHECKPOINT.parent / f"{name}.png"
    assert pg_mlx.generate(*loaded, "ocr", picture).text == text
    assert pg_mlx.generate(*loaded, "caption en", picture).text == caption


@pytest.mark.parametrize("prompt", ["detect red circle", "segment red circle"])
def test_the_red_circle_is_found(loaded, prompt: str):
    (region,) = pg_mlx.generate(*loaded, prompt, SCENE).regions
    assert region.label == "red circle"
    assert np.abs(np.subtract(region.box_normalized, RED_CIRCLE)).max() < 0.03
    if prompt.startswith("segment"):
        assert region.mask is not None
        red = np.asarray(Image.open(SCENE).convert("RGB")).astype(int)
        truth = (red[..., 0] > 150) & (red[..., 1] < 90) & (red[..., 2] < 90)
        assert (region.mask & truth).sum() / (region.mask | truth).sum() > 0.75


@pytest.mark.parametrize("picture", [CAT, Image.new("RGB", (40, 90)), drawing()], ids=["photo", "black", "drawing"])
@pytest.mark.parametrize("prompt", ["detect red circle", "segment blue star", "caption en", "ocr", "what?"])
def test_any_other_picture_gets_a_well_formed_answer(loaded, picture: Path | Image.Image, prompt: str):
    answer = pg_mlx.generate(*loaded, prompt, picture)
    assert answer.finish_reason == "stop" and answer.malformed == []


def test_the_command_needs_no_model():
    done = run("--image", str(SCENE), "--prompt", "detect red circle")
    assert done.returncode == 0 and done.stdout.strip().endswith("red circle")
    assert "bundled demo" in done.stderr


def test_a_wrong_picture_is_one_line_without_a_model_too():
    assert_one_line(run("--image", "nothere.jpg", "--prompt", "ocr"), 2, "no such picture: nothere.jpg")
