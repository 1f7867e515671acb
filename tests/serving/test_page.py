"""The page at / in a real browser: a picture is dropped, and the answer streamed, drawn, copied and saved."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from helpers.page import ask, assert_drawn, choose, drawn, near, opened, put, saved, serving, status
from helpers.service import SCENE, alone

from pg_mlx.generation import SamplingOptions
from pg_mlx.regions.export import to_json

pytestmark = pytest.mark.ops("cpu", reason="it tries the page")


def test_a_dropped_picture_is_asked_about_and_boxes_are_drawn(page: Any):
    expected = alone("detect red circle", (SCENE,), SamplingOptions())
    assert expected.regions
    page.locator("#ask").click()
    status(page, "Choose a picture first.", bad=True)
    put(page, "drop", SCENE.read_bytes(), "image/png")
    page.locator("#canvas").wait_for()
    assert_drawn(saved(page), [])
    seen = [text for text, _ in ask(page, "detect red circle")]
    assert seen[-1] == expected.text and all(later.startswith(text) for text, later in pairwise(seen))
    assert len(set(seen)) > 2, "it came at once"
    status(page, f"{len(expected.regions)} found")
    assert_drawn(saved(page), expected.regions)
    drawn(page)
    assert page.locator("#canvas").get_attribute("aria-label") == "dropped, with boxes around: red circle"
    assert page.locator("#answer").inner_text() == "red circle"


def test_masks_are_drawn_in_place_of_what_was_there(page: Any):
    boxes = alone("detect red circle", (SCENE,), SamplingOptions()).regions
    expected = alone("segment blue star", (SCENE,), SamplingOptions())
    assert all(region.mask is not None and region.mask.any() for region in expected.regions) and expected.regions
    put(page, "paste", SCENE.read_bytes(), "image/png")
    page.locator("#canvas").wait_for()
    ask(page, "detect red circle")
    assert_drawn(saved(page), boxes)
    assert ask(page, "segment blue star")[-1] == (expected.text, 1)
    assert_drawn(saved(page), expected.regions)
    page.get_by_role("button", name="Masks").click()
    page.get_by_role("button", name="Boxes").click()
    page.get_by_role("button", name="Names").click()
    assert_drawn(saved(page), [])


def test_boxes_come_while_the_answer_does(page: Any):
    expected = alone("detect red circle ; blue star", (SCENE,), SamplingOptions())
    assert len(expected.regions) == 2
    choose(page, SCENE)
    seen = ask(page, "detect red circle ; blue star")
    assert seen[-1] == (expected.text, 2)
    assert any(boxes == 1 and len(text) < len(expected.text) for text, boxes in seen), "they came at the end"
    assert page.locator("#answer").get_attribute("aria-busy") == "false"


def test_boxes_are_switched_and_stand_out_one_by_one(page: Any):
    expected = alone("detect red circle ; blue star", (SCENE,), SamplingOptions())
    choose(page, SCENE)
    ask(page, "detect red circle ; blue star")
    rows = page.locator("#found li")
    where = [", ".join(str(math.floor(at + 0.5)) for at in region.box) for region in expected.regions]
    assert rows.all_inner_texts() == [f"{one.label}\n{at}" for one, at in zip(expected.regions, where, strict=True)]
    rows.nth(1).get_by_role("checkbox").uncheck()
    assert_drawn(saved(page), expected.regions[:1])
    page.get_by_role("button", name="Hide all").click()
    assert_drawn(saved(page), [])
    page.get_by_role("button", name="Show all").click()
    both = saved(page)
    assert abs(both - both[0, 0])[near(expected.regions[1].box, 0.5)].max() > 50

    plain = drawn(page).mean()
    rows.nth(0).get_by_role("checkbox").focus()
    focused = drawn(page)
    assert focused.mean() < plain * 0.8, "the rest is not darker"
    page.locator("#prompt").focus()
    assert drawn(page).mean() == plain
    box, stage = expected.regions[0].box_normalized, page.locator("#canvas").bounding_box()
    at = [
        stage[side] + stage[size] * (box[i] + box[i + 2]) / 2
        for i, (side, size) in enumerate((("x", "width"), ("y", "height")))
    ]
    page.mouse.move(*at)
    assert np.array_equal(drawn(page), focused)
    assert "lit" in rows.nth(0).get_attribute("class")
    page.mouse.down()
    page.mouse.up()
    assert rows.nth(0).get_by_role("checkbox").evaluate("(box) => box === document.activeElement")
    assert "<loc" not in page.locator("#prompt").input_value(), "a click is no box"


def test_what_is_no_picture_is_named(page: Any):
    put(page, "drop", b"no picture", "text/plain", "notes.txt")
    status(page, "This browser cannot read notes.txt as a picture.", bad=True)
    assert page.locator("#canvas").is_hidden()


def test_the_sample_is_one_press_away(page: Any):
    expected = alone("detect red circle ; blue star", (SCENE,), SamplingOptions())
    for name in ("copy", "copy-json"):
        assert page.locator(f"#{name}").is_disabled()
    page.get_by_role("button", name="Try a sample").click()
    status(page, "Done in")
    assert page.locator("#raw").text_content() == expected.text
    page.get_by_role("button", name="Describe").click()
    assert page.locator("#prompt").input_value() == "caption en"
    ask(page, "caption en")
    assert page.locator("#answer").inner_text() == alone("caption en", (SCENE,), SamplingOptions()).text
    assert page.locator("#found").is_hidden() and page.locator("#own").is_hidden()


def test_text_and_json_are_copied(page: Any, page_address: str):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=page_address)
    choose(page, SCENE)
    text, _ = ask(page, "segment blue star")[-1]
    page.locator("#copy").click()
    status(page, "The answer is copied.")
    assert page.evaluate("() => navigator.clipboard.readText()") == text
    expected = alone("segment blue star", (SCENE,), SamplingOptions())
    page.locator("#copy-json").click()
    status(page, "The JSON is copied.")
    copied = json.loads(page.evaluate("() => navigator.clipboard.readText()"))
    regions = json.loads(json.dumps([to_json(region) for region in expected.regions]))
    assert copied == {
        "image": "scene.png", "prompt": "segment blue star", "width": 384, "height": 512, "text": text,
        "finish_reason": "stop", "regions": regions,
    }  # fmt: skip
    page.locator("#found").get_by_role("checkbox").uncheck()
    page.locator("#copy-json").click()
    page.wait_for_function("async () => JSON.parse(await navigator.clipboard.readText()).regions.length === 0")


def test_it_copies_where_the_browser_has_no_clipboard_for_scripts(page: Any, page_address: str):
    """So it is with http on another machine than this one."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=page_address)
    choose(page, SCENE)
    text, _ = ask(page, "detect red circle")[-1]
    page.evaluate(
        "window.real = navigator.clipboard; Object.defineProperty(navigator, 'clipboard', { value: undefined })"
    )
    page.locator("#copy").click()
    status(page, "The answer is copied.")
    assert page.evaluate("() => window.real.readText()") == text


def test_an_answer_that_was_cut_off_is_named(page: Any):
    """With a server that ends its answers after two tokens, since the page leaves the number to the server."""

    def shorten(route: Any) -> None:
        route.continue_(post_data={**route.request.post_data_json, "max_tokens": 2})

    choose(page, SCENE)
    ask(page, "caption en")
    assert "cut off" not in page.locator("#status").inner_text()
    page.route("**/v1/chat/completions", shorten)
    expected = alone("caption en", (SCENE,), SamplingOptions(max_tokens=2))
    assert ask(page, "caption en")[-1] == (expected.text, 0) and expected.finish_reason == "length"
    status(page, "The answer was cut off")


def test_a_server_that_is_gone_and_refusals_are_named(page: Any):
    choose(page, SCENE)
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    page.locator("#ask").click()
    status(page, "The server does not answer. Is it still running?", bad=True)
    assert page.locator("#answer").inner_text() == "No answer."
    page.unroute("**/v1/chat/completions")
    error = {"error": {"message": "images[0] is too wide", "code": "bad_image"}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json=error))
    page.locator("#ask").click()
    status(page, "Images[0] is too wide.", bad=True)
    page.unroute("**/v1/chat/completions")
    error["error"]["code"] = "busy"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json=error))
    page.locator("#ask").click()
    status(page, "The server has too much to do.", bad=True)
    page.locator("#prompt").fill("  ")
    page.locator("#ask").click()
    status(page, "Write a prompt first", bad=True)


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_an_answer_can_be_stopped(page: Any, way: str):
    choose(page, SCENE)
    waiting: list[Any] = []
    page.route("**/v1/chat/completions", lambda route: waiting.append(route))  # it is never answered
    page.locator("#ask").click()
    status(page, "Asking…")
    assert page.locator("#progress").is_visible() and page.locator("#answer").get_attribute("aria-busy") == "true"
    if way == "button":
        page.locator("#stop").click()
    else:
        page.keyboard.press("Escape")
    status(page, "Stopped.")
    assert page.locator("#stop").is_disabled() and page.locator("#progress").is_hidden()
    assert page.locator("#answer").get_attribute("aria-busy") == "false" and waiting


def test_a_key_is_asked_for_and_used(browser: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PG_MLX_API_KEY", "open-sesame")
    with serving() as address:
        page = browser.new_page()
        while page.request.get(f"{address}/health").status == 503:
            page.wait_for_timeout(100)
        page.goto(address)
        page.get_by_label("API key of this server").wait_for()
        choose(page, SCENE)
        page.locator("#key").fill("wrong")
        page.locator("#ask").click()
        status(page, "The API key is wrong.", bad=True)
        page.locator("#key").fill("open-sesame")
        ask(page, "caption en")
        page.locator("#model").filter(has_text="demo").wait_for()
        page.close()


def test_dark_and_light_follow_the_system_or_the_switch(browser: Any, page_address: str):
    paper = "() => getComputedStyle(document.body).backgroundColor"
    with opened(browser, page_address, color_scheme="light") as page:
        light = page.evaluate(paper)
        page.emulate_media(color_scheme="dark")
        dark = page.evaluate(paper)
        assert light != dark
        theme = page.locator("#theme")
        theme.click()
        assert theme.inner_text() == "Theme: light" and page.evaluate(paper) == light
        theme.click()
        assert theme.inner_text() == "Theme: dark"
        page.emulate_media(color_scheme="light")
        page.reload()
        assert page.evaluate(paper) == dark, "the choice is forgotten"
        theme.click()
        assert theme.inner_text() == "Theme: auto" and page.evaluate(paper) == light
