"""The page for everybody: with the keyboard, a screen reader, a phone, dark and light. And what a browser loads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.page import SIZES, answer_with, ask, choose, drawn, opened, region, status
from helpers.paths import ROOT
from helpers.service import SCENE

pytestmark = pytest.mark.ops("cpu", reason="it tries the page")

AXE = Path(os.environ.get("PG_MLX_AXE", ROOT / "node_modules/axe-core/axe.min.js"))
LONGEST_BYTES = 64 << 10
"""Of the page. One picture of a phone is a hundred times as large."""
SHIFT = 0.01
"""Google calls a cumulative layout shift below 0.1 good."""


@pytest.fixture(params=SIZES)
def sized(request: pytest.FixtureRequest, browser: Any, page_address: str) -> Iterator[Any]:
    """The page in a browser of each size."""
    phone = {"has_touch": True, "is_mobile": True} if request.param == "phone" else {}
    with opened(browser, page_address, viewport=SIZES[request.param], **phone) as page:
        yield page


def violations(page: Any) -> list[str]:
    """What axe-core finds, and what it cannot decide."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("() => axe.run(document, { resultTypes: ['violations', 'incomplete'] })")
    assert len(found["passes"]) > 10, "it has looked at nothing"  # behind a dialog is nothing
    named = [one for one in found["violations"] + found["incomplete"] if one["id"] != "video-caption"]  # it is a camera
    return [f"{one['id']}: {node['target']}" for one in named for node in one["nodes"]]


@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm install --no-save axe-core, or PG_MLX_AXE=axe.min.js")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(sized: Any, scheme: str):
    page = sized
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    assert violations(page) == [], "empty"
    choose(page, SCENE, SCENE.with_name("dog.png"))
    assert violations(page) == [], "with pictures"
    ask(page, "segment blue star")
    page.locator("summary").click()
    page.locator("#found").get_by_role("checkbox").focus()
    assert violations(page) == [], "with an answer"
    page.locator("#found").get_by_role("checkbox").uncheck()
    page.locator("#mark").click()
    assert violations(page) == [], "with a marked place"
    page.get_by_label("Right").fill("1")
    assert violations(page) == [], "with a wrong place"
    page.get_by_label("Right").blur()
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    page.locator("#ask").click()
    status(page, "The server does not answer", bad=True)
    assert violations(page) == [], "with an error"
    waiting: list[Any] = []
    page.unroute("**/v1/chat/completions")
    page.route("**/v1/chat/completions", lambda route: waiting.append(route))
    page.locator("#ask").click()
    status(page, "Asking…")
    assert violations(page) == [], "while it answers"
    page.evaluate("wantKey()")
    assert violations(page) == [], "with a key wanted"
    page.get_by_role("button", name="Camera").click()
    page.locator("#snap:enabled").wait_for()
    assert violations(page) == [], "with the camera"


def test_what_is_touched_is_large_enough_and_fits(sized: Any):
    """24 px is the least that WCAG 2.2 allows. Phones zoom into fields with letters below 16 px."""
    page = sized
    choose(page, SCENE, SCENE.with_name("dog.png"))
    ask(page, "segment blue star")
    page.locator("#mark").click()
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, input:not([type=file]), textarea, summary, #found label")]
          .filter((one) => one.checkVisibility() && !one.closest("label:has(input[type=radio], input[type=checkbox])"))
          .map((one) => [one.id || one.className || one.textContent, one.getBoundingClientRect()])
          .filter(([, { width, height }]) => width < 24 || height < 24).map(([name]) => name)"""
    )
    assert small == []
    fields = "(all) => all.map((one) => parseFloat(getComputedStyle(one).fontSize))"
    assert min(page.locator("textarea, input[type=number], input[type=password]").evaluate_all(fields)) >= 16
    assert page.locator("img").evaluate_all("(all) => all.every((one) => one.hasAttribute('alt'))")
    for width in (320, 360, page.viewport_size["width"]):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, width


def test_nothing_moves_when_an_answer_comes(sized: Any):
    page = sized
    choose(page, SCENE)
    boxes = [region(f"thing {index}", 10, 10 + index, 100, 100 + index) for index in range(12)]
    answer_with(page, "<loc0001><loc0001><loc0900><loc0900> thing", boxes)
    page.wait_for_timeout(700)  # what moves within 500 ms of a press does not count
    page.evaluate(
        """() => {
          window.shift = 0;
          new PerformanceObserver((list) => list.getEntries().forEach(({ value }) => window.shift += value))
            .observe({ type: "layout-shift" });
          ask();
        }"""
    )
    status(page, "12 found")
    page.wait_for_timeout(200)
    shift = page.evaluate("() => window.shift")
    print(f"layout shift {shift:.4f}")
    assert shift < SHIFT


def test_the_keyboard_does_everything_and_its_place_is_seen(page: Any):
    """From the first key to an answer and its boxes, without a mouse."""
    focused = "() => document.activeElement.id || document.activeElement.textContent.trim()"
    outlined = "() => parseFloat(getComputedStyle(document.activeElement).outlineWidth) >= 2"

    def tab_to(name: str) -> None:
        for _ in range(40):
            page.keyboard.press("Tab")
            assert page.evaluate(outlined), page.evaluate(focused)
            if page.evaluate(focused) == name:
                return
        raise AssertionError(f"{name} is not reached")

    tab_to("sample")
    page.keyboard.press("Enter")
    status(page, "Done in")
    page.evaluate("document.activeElement.blur()")
    tab_to("Outlinesegment")
    page.keyboard.press("Enter")
    assert page.locator("#prompt").input_value() == "segment red circle ; blue star"
    page.keyboard.press("Control+A")
    page.keyboard.type("detect blue star")
    page.keyboard.press("Enter")
    page.locator("#asked").filter(has_text="detect blue star").wait_for()
    status(page, "1 found")
    tab_to("all-off")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert not page.locator("#found").get_by_role("checkbox").is_checked()
    tab_to("clear")
    page.keyboard.press("Enter")
    assert page.locator("#history li").count() == 0


def test_a_screen_reader_finds_its_way(page: Any):
    choose(page, SCENE)
    ask(page, "detect red circle")
    drawn(page)
    tree = page.locator("body").aria_snapshot()
    for line in (
        "banner:", "main:", 'region "Pictures"', 'region "Question and answer"', 'region "Answer"',
        'region "Earlier questions"', 'heading "pg_mlx" [level=1]', 'heading "Answer" [level=2]',
        'img "scene.png, with boxes around: red circle"', 'textbox "Prompt"', "status: Done in",
        'checkbox "red circle', 'button "Find detect" [pressed]', 'button "Picture 1: scene.png" [pressed]',
    ):  # fmt: skip
        assert line in tree, line
    assert page.locator("#answer").get_attribute("aria-live") == "polite"


def test_it_is_one_document_that_asks_nobody_else(browser: Any, page_address: str):
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    response = page.goto(page_address, wait_until="networkidle")
    assert set(asked) == {f"{page_address}/", f"{page_address}/v1/models"}
    assert len(response.body()) < LONGEST_BYTES
    assert page.title() == "pg_mlx: ask about a picture"
    assert page.locator("html").get_attribute("lang") == "en"
    assert "width=device-width" in page.locator("meta[name=viewport]").get_attribute("content")
    assert len(page.locator("meta[name=description]").get_attribute("content")) > 50
    loaded = page.evaluate("() => performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    print(f"{len(response.body())} bytes, ready after {loaded:.0f} ms")
    context.close()
