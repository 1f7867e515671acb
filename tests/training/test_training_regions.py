"""Boxes and masks as the words of an answer."""

from __future__ import annotations

import random

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pg_mlx.errors import InputError
from pg_mlx.regions import parse_regions
from pg_mlx.training import regions
from pg_mlx.training.example import Example, LabelledObject
from pg_mlx.training.formats.objects import checked_label
from pg_mlx.training.masks import Mask
from pg_mlx.training.regions import RegionWriter, answer_text, in_order, location_text, mask_crop

SIZE = (640, 480)
places = st.floats(0, 1)


@given(places, places, places, places)
def test_locations_are_the_nearest_and_can_be_read_back(a: float, b: float, c: float, d: float) -> None:
    left, right, top, bottom = min(a, b) * 640, max(a, b) * 640, min(c, d) * 480, max(c, d) * 480
    text = location_text((left, top, right, bottom), SIZE)
    (region,) = parse_regions(text, SIZE)
    wanted = [round(place * 1023) for place in (top / 480, left / 640, bottom / 480, right / 640)]
    thin = wanted[0] == wanted[2], wanted[1] == wanted[3]
    for place, nearest, one_more in zip(region.locations, wanted, thin * 2, strict=True):
        assert abs(place - nearest) <= one_more
    assert location_text(region.box, SIZE) == text


def test_thin_boxes_get_a_step_of_width() -> None:
    assert location_text((0, 0, 0.1, 480), SIZE) == "<loc0000><loc0000><loc1023><loc0001>"
    assert location_text((639.9, 479.9, 640, 480), SIZE) == "<loc1022><loc1022><loc1023><loc1023>"


def test_order_is_by_class_then_from_top_then_from_left() -> None:
    def thing(label: str, left: float, top: float) -> LabelledObject:
        return LabelledObject(label, (left, top, left + 50, top + 50))

    wanted = [
        thing("dog", 9, 5),
        thing("cat", 300, 10),
        thing("cat", 20, 100),
        thing("cat", 200, 100),
        thing("x", 0, 0),
    ]
    for seed in range(5):
        mixed = random.Random(seed).sample(wanted, len(wanted))
        assert list(in_order(mixed, ["dog", "cat"], SIZE)) == wanted


def test_answers_are_read_back_with_their_labels() -> None:
    objects = [LabelledObject("traffic light", (1, 2, 30, 40)), LabelledObject("cat", (5, 6, 70, 80))]
    text = answer_text(objects, SIZE, [tuple(range(16)), None])
    first, second = parse_regions(text, SIZE)
    assert (first.label, first.codes, second.label, second.codes) == ("traffic light", tuple(range(16)), "cat", None)
    assert text.count(" ; ") == 1 and answer_text([], SIZE, []) == ""


@pytest.mark.parametrize("label", ["a;b", "<loc0001>", "x <seg001>", "", "  ", None, 3, "\ud800"])
def test_labels_that_could_not_be_read_back(label: object) -> None:
    with pytest.raises(InputError):
        checked_label(label)


def test_labels_get_single_spaces() -> None:
    assert checked_label(" traffic\n light ") == "traffic light"


def blob(left: int, top: int, right: int, bottom: int) -> Mask:
    bitmap = np.zeros((480, 640), bool)
    bitmap[top:bottom, left:right] = True
    return Mask.from_bitmap(bitmap)


def row(*masks: Mask) -> Example:
    objects = tuple(LabelledObject("cat", mask.box(), mask) for mask in masks)
    return Example("a.png", "segment cat", "", objects, "segment", SIZE)


def test_masks_are_encoded_in_bounded_batches_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "AT_ONCE", 4)
    seen: list[int] = []

    def encoder(masks: np.ndarray) -> mx.array:
        assert masks.shape[1:] == (64, 64) and masks.dtype == np.float32
        seen.append(len(masks))
        return mx.broadcast_to(mx.arange(16), (len(masks), 16))

    writer = RegionWriter(encoder)
    masks = [blob(n, n, n + 30, n + 20) for n in range(9)]
    text = Example("b.png", "caption en", "a cat")
    given = Example("c.png", "segment cat", "<loc0001>", kind="segment")
    found = writer.written([row(*masks), text, given, row(masks[3]), row()])
    assert seen == [4, 4, 1]
    assert found[1:3] == [text, given] and found[4].suffix == ""
    assert found[0].suffix.count("<seg015> cat") == 9 and found[3].suffix in found[0].suffix
    monkeypatch.setattr(regions, "CACHED", 2)
    writer.written([row(blob(100, 100, 200, 200))])
    writer.written([row(masks[0])])
    assert seen == [4, 4, 1, 1, 1]


def test_a_mask_is_cropped_at_its_box_rounded() -> None:
    mask = blob(10, 20, 50, 100)
    assert (mask_crop(mask, (10.4, 19.6, 50.4, 99.6)) == 1).all()
    assert mask_crop(mask, (10, 20, 90, 100)).mean() == pytest.approx(0.5, abs=0.01)
    assert mask_crop(mask, (10.1, 20.1, 10.2, 20.2)).shape == (64, 64)


def test_masks_of_polygons_and_run_lengths_are_the_same() -> None:
    polygon = Mask.from_polygons([[10, 20, 50, 20, 50, 100, 10, 100]], SIZE)
    assert polygon == blob(10, 20, 50, 100) and polygon.box() == (10, 20, 50, 100)
    two = Mask.from_polygons([[0, 0, 10, 0, 10, 10, 0, 10], [20, 0, 30, 0, 30, 10, 20, 10]], SIZE)
    assert two.bitmap().sum() == 200
    assert Mask.from_bitmap(np.zeros((3, 4), bool)).box() is None
