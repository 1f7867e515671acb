"""Boxes and masks move with their picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import training_data as data
from PIL import Image

from pg_mlx.errors import InputError
from pg_mlx.processor.notes import PictureWarning
from pg_mlx.training.augment import augment, check_augment, cropped, flipped, random_window
from pg_mlx.training.example import Example, LabelledObject
from pg_mlx.training.masks import Mask, bitmap_box
from pg_mlx.training.regions import answer_text, in_order

CASES = 1000


def example(scene: data.Labelled, image: Image.Image | None = None) -> Example:
    objects = in_order(scene.objects, [], scene.size)
    suffix = answer_text(objects, scene.size, [None] * len(objects))
    return Example(image or scene.image, "detect thing", suffix, objects, "detect", scene.size, "here:1")


def painted(scene: data.Labelled) -> Image.Image:
    """Black, with a bit of red for each object: they may overlap."""
    pixels = np.zeros((scene.size[1], scene.size[0], 3), np.uint8)
    for number, one in enumerate(scene.objects):
        pixels[one.mask.bitmap(), 0] |= 1 << number
    return Image.fromarray(pixels)


def test_a_thousand_boxes_are_those_of_their_masks() -> None:
    scenes = data.labelled_scenes(20, 0.5)
    rows = [example(scene, painted(scene)) for scene in scenes]
    worst, dropped, seen = 0.0, 0, 0
    for case in range(CASES):
        scene = scenes[case % len(scenes)]
        moved = augment(rows[case % len(rows)], ("flip", "crop"), seed=1, step=case, row=0)
        assert moved.image.size == moved.image_size and len(moved.objects) >= 1
        dropped += len(scene.objects) - len(moved.objects)
        reds = np.asarray(moved.image)[..., 0] & 127  # grey, beside the picture, is 128
        for one in moved.objects:
            bitmap = one.mask.bitmap()
            seen += 1
            worst = max(worst, *np.abs(np.subtract(bitmap_box(bitmap), one.box)))
            bit = np.bitwise_and.reduce(reds[bitmap])
            assert any(np.array_equal(reds >> n & 1 == 1, bitmap) for n in range(7) if bit >> n & 1)
        width, height = moved.image_size
        assert all(0 <= a < c <= width and 0 <= b < d <= height for a, b, c, d in (one.box for one in moved.objects))
        assert moved.suffix == answer_text(moved.objects, moved.image_size, [None] * len(moved.objects))
    print(f"{CASES} cases, {seen} objects, {dropped} dropped; worst distance {worst} px")
    assert worst <= 1


def test_boxes_alone_move_like_boxes_with_masks() -> None:
    for case, scene in enumerate(data.labelled_scenes(20)):
        bare = tuple(replace(one, mask=None) for one in scene.objects)
        window = random_window(scene.size, scene.objects, np.random.default_rng(case))
        image, with_masks = cropped(scene.image, scene.objects, window)
        _, alone = cropped(scene.image, bare, window)
        inside = {one.box for one in with_masks if one.mask.bitmap().sum() == whole(scene, one.label)}
        assert inside <= {one.box for one in alone}
        assert image.size == (window[2] - window[0], window[3] - window[1])


def whole(scene: data.Labelled, label: str) -> int:
    areas = [one.mask.bitmap().sum() for one in scene.objects if one.label == label]
    return int(areas[0]) if len(areas) == 1 else -1


def test_twice_flipped_is_as_before() -> None:
    scene = data.labelled_scenes(1)[0]
    image, objects = flipped(*flipped(scene.image, scene.objects))
    assert np.array_equal(np.asarray(image), np.asarray(scene.image)) and objects == scene.objects


def test_it_is_a_function_of_seed_step_and_row() -> None:
    row = example(data.labelled_scenes(3)[2])
    every = ("flip", "crop", "color", "order")
    one, same = (augment(row, every, 5, 7, 2) for _ in range(2))
    assert np.array_equal(np.asarray(one.image), np.asarray(same.image))
    assert replace(one, image=None) == replace(same, image=None)
    others = [augment(row, every, *place) for place in ((6, 7, 2), (5, 8, 2), (5, 7, 3))]
    assert all(other.objects != one.objects for other in others)


def test_order_keeps_the_records_and_the_picture() -> None:
    scene = max(data.labelled_scenes(20), key=lambda scene: len(scene.objects))
    row = example(scene)
    found = [augment(row, ("order",), 0, step, 0) for step in range(8)]
    assert len({one.suffix for one in found}) > 3
    for one in found:
        assert one.image is row.image
        assert sorted(one.suffix.split(" ; ")) == sorted(row.suffix.split(" ; "))
        assert one.suffix == answer_text(one.objects, scene.size, [None] * len(one.objects))


def test_color_changes_no_place() -> None:
    row = example(data.labelled_scenes(1)[0])
    found = augment(row, ("color",), 0, 0, 0)
    assert (found.objects, found.suffix) == (row.objects, row.suffix)
    assert not np.array_equal(np.asarray(found.image), np.asarray(row.image))


def test_half_are_flipped() -> None:
    row = Example(Image.new("RGB", (8, 8)), "caption en", "a cat")
    changed = sum(augment(row, ("flip",), 0, step, 0).image is not row.image for step in range(400))
    assert 160 < changed < 240


def test_segment_answers_wait_for_the_encoder() -> None:
    row = replace(example(data.labelled_scenes(1)[0]), kind="segment", suffix="")
    assert augment(row, ("crop",), 0, 0, 0).suffix == ""


BOX = LabelledObject("cat", (1, 1, 5, 5))
TOKENS = "<loc0000><loc0000><loc0100><loc0100>"


@pytest.mark.parametrize(
    ("names", "row", "words"),
    [
        (["flip"], Example("a", "which hand?", "the left one"), "'left'"),
        (["flip"], Example("a", "detect left shoe", "", kind="detect"), "'left'"),
        (["flip"], Example("a", "ocr", "STOP"), "reads"),
        (["flip"], Example("a", "answer en what does the sign say?", "stop"), "'say'"),
        (["crop"], Example("a", "caption en", "a cat"), "cut away"),
        (["flip"], Example("a", f"caption {TOKENS}", "a cat"), "<loc> tokens"),
        (["flip"], Example("a", "segment cat", f"{TOKENS} cat", (BOX,), "segment"), "give polygons"),
        (["mirror"], Example("a", "caption en", "a cat"), "no augmentation 'mirror'"),
    ],
)
def test_what_would_be_wrong_is_refused(names: list[str], row: Example, words: str) -> None:
    with pytest.raises(InputError) as caught:
        check_augment(names, [replace(row, where="data.jsonl:7")])
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_what_is_right_is_not_refused() -> None:
    check_augment(["flip", "order", "color"], [Example("a", "caption en", "a bright cat")])
    check_augment(["flip", "crop"], [Example("a", "detect cat", f"{TOKENS} cat", (BOX,), "detect")])


def test_a_picture_that_is_read_at_half_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large JPEG: its labels are in the pixels of the whole."""
    scene = next(scene for scene in data.labelled_scenes(5) if scene.size[0] % 16 == 0)
    scene.image.save(tmp_path / "a.jpg")
    monkeypatch.setattr("pg_mlx.processor.images.MAX_PIXELS", scene.size[0] * scene.size[1] - 1)
    row = replace(example(scene), image=str(tmp_path / "a.jpg"))
    with pytest.warns(PictureWarning):
        moved = [augment(row, ("flip",), 0, step, 0) for step in range(6)]
    (one, *_) = [found for found in moved if found.image is not row.image]
    assert one.image_size == (scene.size[0] // 2, scene.size[1] // 2)
    for before, behind in zip(row.objects, one.objects, strict=True):
        assert behind.mask.size == one.image_size
        assert np.abs(np.subtract(bitmap_box(behind.mask.bitmap()), behind.box)).max() <= 1
        assert behind.box[0] == (scene.size[0] - before.box[2]) / 2


def test_an_object_of_which_little_is_left_is_dropped() -> None:
    bitmap = np.zeros((20, 20), bool)
    bitmap[2:18, 2:12] = True
    mask = Mask.from_bitmap(bitmap)
    objects = (LabelledObject("a", mask.box(), mask), LabelledObject("b", (2.0, 2.0, 12.0, 18.0)))
    image = Image.new("RGB", (20, 20))
    assert cropped(image, objects, (11, 0, 20, 20))[1] == ()
    kept = cropped(image, objects, (6, 0, 20, 20))[1]
    assert [one.box for one in kept] == [(0, 2, 6, 18)] * 2
