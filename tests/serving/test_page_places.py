"""A place that is marked on the page: by drawing, in the fields of its sides, and in the prompt."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from helpers.page import PICTURE, choose, drawn, opened, status
from helpers.service import SCENE

import pg_mlx

pytestmark = pytest.mark.ops("cpu", reason="it tries the page")

SIZE = (PICTURE.shape[1], PICTURE.shape[0])


def test_a_box_is_written_as_pg_mlx_writes_it(page: Any):
    """Halves, too: Python rounds them to even numbers."""
    draw = random.Random(7)
    boxes = [(0, 0, 1, 1), (1, 1, 3, 5), (0, 0, *SIZE), (-5, -1, 10_000, 10_000), (0.5, 0.5, 0.5, 0.5)]
    boxes += [
        tuple(sorted(draw.uniform(0, SIZE[0]) for _ in "ab")) + tuple(sorted(draw.uniform(0, SIZE[1]) for _ in "ab"))
        for _ in range(200)
    ]
    boxes[5:] = [(x0, y0, x1, y1) for x0, x1, y0, y1 in boxes[5:]]
    sizes = [SIZE] * len(boxes)
    halves = [(x, y, x + 3, y + 7) for x in range(0, 40) for y in range(0, 40, 9)]
    boxes, sizes = boxes + halves, sizes + [(2046, 2046)] * len(halves)
    expected = [pg_mlx.format_region(box, size) for box, size in zip(boxes, sizes, strict=True)]
    script = "(all) => all.map(([box, [w, h]]) => locText([box[0] / w, box[1] / h, box[2] / w, box[3] / h]))"
    assert page.evaluate(script, list(zip(boxes, sizes, strict=True))) == expected
    assert page.evaluate("[0.5, 1.5, 2.5, 2.4, 2.6, 3].map(roundHalfEven)") == [
        round(x) for x in (0.5, 1.5, 2.5, 2.4, 2.6, 3)
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("caption en", "caption {}"),
        ("", "caption {}"),
        ("answer en what is it?", "answer en what is it? {}"),
        ("caption <loc0000><loc0000><loc0001><loc0001> please", "caption {} please"),
    ],
)
def test_a_drawn_box_is_in_the_prompt(page: Any, before: str, after: str):
    choose(page, SCENE)
    plain = drawn(page)
    page.locator("#prompt").fill(before)
    stage = page.locator("#canvas").bounding_box()
    scale = stage["width"] / SIZE[0]
    start, end = (300, 400), (60, 110)  # from the lower right to the upper left
    points = [(round(stage["x"] + x * scale), round(stage["y"] + y * scale)) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=4)
    page.mouse.up()
    (right, bottom), (left, top) = [((x - stage["x"]), (y - stage["y"])) for x, y in points]
    expected = pg_mlx.format_region((left, top, right, bottom), (round(stage["width"]), round(stage["height"])))
    assert page.locator("#prompt").input_value() == after.format(expected)
    assert abs(drawn(page) - plain).max() > 100, "it is not on the picture"
    assert "with a marked place" in page.locator("#canvas").get_attribute("aria-label")
    page.get_by_role("button", name="Remove", exact=True).click()
    assert "<loc" not in page.locator("#prompt").input_value() and page.locator("#place").is_hidden()
    assert np.array_equal(drawn(page), plain)


def test_a_place_is_marked_with_the_keyboard_alone(page: Any):
    choose(page, SCENE)
    page.locator("#mark").focus()
    page.keyboard.press("Space")
    assert page.locator("#prompt").input_value() == f"caption {pg_mlx.format_region((96, 128, 288, 384), SIZE)}"
    for label, pixels in (("Left", "40"), ("Top", "30"), ("Right", "220"), ("Bottom", "180")):
        page.get_by_label(label).fill(pixels)
    assert page.locator("#prompt").input_value() == f"caption {pg_mlx.format_region((40, 30, 220, 180), SIZE)}"
    page.get_by_label("Right").fill("39")
    status(page, "Left must be smaller than right", bad=True)
    assert page.get_by_label("Right").get_attribute("aria-invalid") == "true"
    assert page.locator("#prompt").input_value() == f"caption {pg_mlx.format_region((40, 30, 220, 180), SIZE)}"
    page.get_by_label("Right").blur()
    assert page.get_by_label("Right").input_value() == "220"


def test_a_place_in_the_prompt_is_on_the_picture(page: Any):
    choose(page, SCENE)
    plain = drawn(page)
    for wrong in (
        "caption <loc0100><loc0100><loc0200>",
        "caption <loc0300><loc0100><loc0200><loc0200>",
        "caption <loc1024>" * 4,
    ):
        page.locator("#prompt").fill(wrong)
        assert page.locator("#place").is_hidden()
    page.locator("#prompt").fill(f"detect cat {pg_mlx.format_region((40, 30, 220, 180), SIZE)}")
    assert [page.get_by_label(label).input_value() for label in ("Left", "Top", "Right", "Bottom")] == [
        "40",
        "30",
        "220",
        "180",
    ]
    assert "may be ignored" in page.locator("#hint").inner_text()
    assert not np.array_equal(drawn(page), plain)


def test_a_finger_scrolls_unless_a_place_is_to_be_marked(browser: Any, page_address: str):
    """Chromium turns a finger's way into pointer events only where the page keeps it from scrolling."""
    with opened(browser, page_address, viewport={"width": 390, "height": 844}, has_touch=True) as page:
        choose(page, SCENE)
        stage = page.locator("#canvas").bounding_box()
        client = page.context.new_cdp_session(page)

        def swipe() -> None:
            x, y = stage["x"] + 20, stage["y"] + 150
            client.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
            for step in range(1, 8):
                client.send(
                    "Input.dispatchTouchEvent",
                    {"type": "touchMove", "touchPoints": [{"x": x + 15 * step, "y": y - 15 * step}]},
                )
            client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

        swipe()
        assert page.locator("#prompt").input_value() == "caption en"
        page.evaluate("scrollTo(0, 0)")
        page.locator("#mark").tap()
        page.evaluate("scrollTo(0, 0)")
        before = page.locator("#prompt").input_value()
        swipe()
        page.wait_for_function("(before) => document.getElementById('prompt').value !== before", arg=before)
        assert page.evaluate("scrollY") == 0
        assert page.locator("#mark").get_attribute("aria-pressed") == "false", "it is done"
