"""The generator of the demo's pictures and questions tells the truth about them."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from PIL import ImageFont

import pg_mlx
from demo import scenes, tasks

SEEDS = range(scenes.TEST_SEEDS.start, scenes.TEST_SEEDS.start + 40)
NO_CODES = [0] * 16


@pytest.fixture(autouse=True)
def own_font(monkeypatch):
    """Pillow's own font, since the machine may have none of those that the real scenes are written in."""
    monkeypatch.setattr(scenes, "font", lambda name, size: ImageFont.load_default(size))


def test_seed_ranges_do_not_overlap():
    ranges = [scenes.TRAIN_SEEDS, scenes.VALIDATION_SEEDS, scenes.TEST_SEEDS]
    assert all(a.stop <= b.start for a, b in itertools.pairwise(ranges))


def test_a_seed_is_a_picture():
    one, again, other = scenes.make_scene(7), scenes.make_scene(7), scenes.make_scene(8)
    assert one.image.tobytes() == again.image.tobytes() != other.image.tobytes()
    assert [item.name for item in one.items] == [item.name for item in again.items]


@pytest.mark.parametrize("seed", SEEDS)
def test_truth_of_a_scene(seed):
    scene = scenes.make_scene(seed)
    width, height = scene.image.size
    assert 1 <= len(scene.items) <= 6
    pixels = np.asarray(scene.image).astype(int)
    covered = np.zeros((height, width), int)
    for item in scene.items:
        covered += item.mask
        x0, y0, x1, y1 = np.round(np.multiply(item.box, (width, height, width, height))).astype(int)
        assert item.mask[y0:y1, x0:x1].sum() == item.mask.sum()  # nothing outside the box
        assert item.mask[y0:y1, [x0, x1 - 1]].any(axis=0).all() and item.mask[[y0, y1 - 1], x0:x1].any(axis=1).all()
        seen = np.median(pixels[item.mask], axis=0)
        nearest = min(scenes.COLORS, key=lambda name: np.abs(np.subtract(scenes.COLORS[name], seen)).sum())
        assert nearest == item.color
    assert covered.max() <= 1  # what is seen at a pixel is one thing


def test_scale_changes_the_size_only():
    small, large = scenes.make_scene(SEEDS[0]), scenes.make_scene(SEEDS[0], scale=2)
    assert large.image.size == tuple(2 * side for side in small.image.size)


@pytest.mark.parametrize("seed", SEEDS)
def test_boxes_in_answers_are_those_of_the_scene(seed):
    scene = scenes.make_scene(seed)
    labels = list(dict.fromkeys(item.shape for item in scene.items))
    regions = pg_mlx.parse_regions(tasks.detect(scene, labels), image_size=scene.image.size)
    assert Counter(region.label for region in regions) == Counter(item.shape for item in scene.items)
    for item in scene.items:
        nearest = min(np.abs(np.subtract(region.box_normalized, item.box)).max() for region in regions)
        assert nearest <= 0.5 / tasks.GRID + 0.5 / 1023


@pytest.mark.parametrize("seed", SEEDS)
def test_answers(seed):
    scene, rng = scenes.make_scene(seed), np.random.default_rng(seed)
    names, shapes = Counter(item.name for item in scene.items), Counter(item.shape for item in scene.items)
    for _ in range(30):
        question = tasks.ask(scene, "answer", rng, lambda item: NO_CODES)
        words = question.prompt.removeprefix("answer en ").rstrip("?").split()
        if question.kind == "presence":
            assert question.answer == ("yes" if names[" ".join(words[-2:])] else "no")
        elif question.kind == "count" and words[2] == "objects":
            assert question.answer == str(len(scene.items))
        elif question.kind == "color":
            assert names[f"{question.answer} {words[-1]}"] == 1 == shapes[words[-1]]
        elif question.kind == "comparison":
            one, two = (word.removesuffix("es") if "crosses" in word else word[:-1] for word in (words[3], words[5]))
            assert question.answer == ("yes" if shapes[one] > shapes[two] else "no")


def test_an_absent_object_has_the_empty_answer():
    scene = scenes.make_scene(SEEDS[0])
    absent = next(shape for shape in scenes.SHAPES if all(item.shape != shape for item in scene.items))
    assert tasks.detect(scene, [absent]) == ""


def test_segments_carry_sixteen_codes():
    scene = scenes.make_scene(SEEDS[0])
    item = scene.items[0]
    (region, *_) = pg_mlx.parse_regions(tasks.detect(scene, [item.name], lambda i: list(range(16))), (100, 100))
    assert region.codes == tuple(range(16))
