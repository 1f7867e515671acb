"""The page at / in a real browser: a picture is dropped, a prompt asked, and the answer streamed and drawn. Needs the
extra `browser` and a Chromium, the system's or Playwright's."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import ROOT
from helpers.service import SCENE, alone
from PIL import Image

from pg_mlx.generation import SamplingOptions
from pg_mlx.regions import Region

pytestmark = pytest.mark.ops("cpu", reason="it tries the page")

playwright = pytest.importorskip("playwright.sync_api", reason="needs pg_mlx[browser]")

FIRST = np.array([0xD6, 0x00, 0x6C])
"""The page's first colour."""
COVER = 110 / 255
"""How much of it a mask has."""
LINE, LETTERS = 2, 18
"""Width of a box's line, and height of a label, on a picture of this size."""
PICTURE = np.asarray(Image.open(SCENE).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    command = [sys.executable, "-m", "pg_mlx", "serve", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        own = running.chromium.executable_path
        path = shutil.which("chromium") or shutil.which("google-chrome") or (own if Path(own).exists() else None)
        if path is None:
            pytest.skip("there is no Chromium (playwright install chromium)")
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = running.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """As it is once the model answers. What the browser finds wrong with the page fails the test."""
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": 900, "height": 1000})
    page.set_default_timeout(120_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    while page.request.get(f"{address}/health").status == 503:
        page.wait_for_timeout(200)
    page.goto(address)
    playwright.expect(page.locator("#model")).to_have_text("demo")
    yield page
    page.close()
    assert wrong == []


def drop(page: Any, data: bytes, kind: str) -> None:
    transfer = page.evaluate_handle(
        """([data, type]) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)), transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "dropped", { type }));
          return transfer;
        }""",
        [base64.b64encode(data).decode(), kind],
    )
    for event in ("dragover", "drop"):
        page.locator("#drop").dispatch_event(event, {"dataTransfer": transfer})


def ask(page: Any, prompt: str) -> list[str]:
    """What the answer said, each time that it grew."""
    page.evaluate(
        """() => {
          const answer = document.getElementById("answer");
          window.seen = [];
          new MutationObserver(() => window.seen.push(answer.textContent)).observe(answer, { childList: true });
        }"""
    )
    page.locator("#prompt").fill(prompt)
    page.locator("#ask").click()
    playwright.expect(page.locator("#status")).to_contain_text("Done in", timeout=120_000)
    return [text for text in page.evaluate("() => window.seen") if text]


def drawn(page: Any) -> np.ndarray:
    """The canvas: int [height, width, 3]."""
    assert page.locator("#canvas").is_visible()
    url = page.evaluate("() => document.getElementById('canvas').toDataURL('image/png')")
    data = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def lines(region: Region, beyond: float) -> np.ndarray:
    """Pixels that are so near to the box's edge: bool [height, width]."""
    y, x = np.mgrid[: PICTURE.shape[0], : PICTURE.shape[1]] + 0.5
    x0, y0, x1, y1 = region.box
    outside = (x < x0 - beyond) | (x > x1 + beyond) | (y < y0 - beyond) | (y > y1 + beyond)
    inside = (x > x0 + beyond) & (x < x1 - beyond) & (y > y0 + beyond) & (y < y1 - beyond)
    return ~(outside | inside)


def letters(region: Region) -> np.ndarray:
    """Where the label may stand, from the box's upper left corner to the right."""
    y, x = np.mgrid[: PICTURE.shape[0], : PICTURE.shape[1]]
    x0, y0 = region.box[:2]
    return (abs(y - y0) <= LETTERS + 1) & (x >= min(x0, PICTURE.shape[1] / 2) - 1)


def assert_drawn(canvas: np.ndarray, regions: list[Region]) -> None:
    """Each box's lines are where they should be, and masks' colour; everywhere else is the picture."""
    anything = np.zeros(PICTURE.shape[:2], bool)
    for region in regions:
        line = lines(region, LINE / 2 - 0.5) & ~letters(region)
        assert line.sum() > 50 and abs(canvas[line] - FIRST).max(axis=-1).mean() < 40, region
        anything |= lines(region, LINE / 2 + 1) | letters(region)
    masked = np.zeros_like(anything)
    for region in regions:
        masked |= region.mask if region.mask is not None else False
    expected = np.where(masked[..., None], PICTURE * (1 - COVER) + FIRST * COVER, PICTURE)
    assert abs(canvas - expected)[~anything].max() <= 3
    assert not regions or abs(canvas - PICTURE)[anything].max() > 50


def test_a_dropped_picture_is_asked_about_and_boxes_are_drawn(page: Any):
    expected = alone("detect red circle", (SCENE,), SamplingOptions())
    assert expected.regions
    page.locator("#ask").click()
    playwright.expect(page.locator("#status")).to_have_text("Choose a picture first.")
    drop(page, SCENE.read_bytes(), "image/png")
    playwright.expect(page.locator("#canvas")).to_be_visible()
    assert_drawn(drawn(page), [])
    seen = ask(page, "detect red circle")
    assert seen[-1] == expected.text and all(later.startswith(text) for text, later in pairwise(seen))
    assert len(set(seen)) > 2, "it came at once"
    assert_drawn(drawn(page), expected.regions)
    assert "red circle" in page.locator("#canvas").get_attribute("aria-label")
    assert f"{len(expected.regions)} found" in page.locator("#status").inner_text()


def test_masks_are_drawn_in_place_of_what_was_there(page: Any):
    boxes = alone("detect red circle", (SCENE,), SamplingOptions()).regions
    expected = alone("segment blue star", (SCENE,), SamplingOptions())
    assert all(region.mask is not None and region.mask.any() for region in expected.regions) and expected.regions
    drop(page, SCENE.read_bytes(), "image/png")
    ask(page, "detect red circle")
    assert_drawn(drawn(page), boxes)
    assert ask(page, "segment blue star")[-1] == expected.text
    assert_drawn(drawn(page), expected.regions)
    if picture := os.environ.get("PG_MLX_PAGE_PICTURE"):  # the one in docs/server.md
        page.screenshot(path=picture, clip={"x": 0, "y": 0, "width": 900, "height": 940})


def test_what_is_no_picture_is_told(page: Any):
    drop(page, b"no picture", "text/plain")
    status = page.locator("#status")
    playwright.expect(status).to_have_text("This browser cannot read that file as a picture.")
    playwright.expect(status).to_have_class("bad")
    playwright.expect(page.locator("#canvas")).to_be_hidden()


def test_an_example_needs_no_picture_and_what_was_found_is_listed(page: Any):
    expected = alone("detect red circle ; blue star", (SCENE,), SamplingOptions())
    assert len({region.label for region in expected.regions}) == 2
    for name in ("copy", "save"):
        playwright.expect(page.locator(f"#{name}")).to_be_disabled()
    page.get_by_role("button", name="detect red circle ; blue star").click()
    playwright.expect(page.locator("#status")).to_contain_text("Done in", timeout=120_000)
    assert page.locator("#answer").inner_text() == expected.text
    listed = [f"{one.label}: {', '.join(str(math.floor(at + 0.5)) for at in one.box)}" for one in expected.regions]
    assert page.locator("#found li").all_inner_texts() == listed
    page.get_by_role("button", name="caption en").click()
    playwright.expect(page.locator("#found")).to_be_hidden()


def test_the_answer_is_copied_and_the_picture_saved(page: Any, address: str):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    page.locator("#sample").click()
    playwright.expect(page.locator("#canvas")).to_be_visible()
    text = ask(page, "detect red circle")[-1]
    page.locator("#copy").click()
    playwright.expect(page.locator("#status")).to_have_text("Copied.")
    assert page.evaluate("() => navigator.clipboard.readText()") == text
    with page.expect_download() as download:
        page.locator("#save").click()
    saved = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    assert np.array_equal(saved, drawn(page))


def test_an_answer_that_was_cut_off_is_named(page: Any):
    """With a server that ends its answers after two tokens, since the page leaves the number to the server."""

    def shorten(route: Any) -> None:
        route.continue_(post_data={**route.request.post_data_json, "max_tokens": 2})

    page.locator("#sample").click()
    playwright.expect(page.locator("#canvas")).to_be_visible()
    cut = page.locator("#status")
    ask(page, "caption en")
    playwright.expect(cut).not_to_contain_text("cut off")
    page.route("**/v1/chat/completions", shorten)
    expected = alone("caption en", (SCENE,), SamplingOptions(max_tokens=2))
    assert ask(page, "caption en")[-1] == expected.text and expected.finish_reason == "length"
    playwright.expect(cut).to_contain_text("The answer was cut off")


def test_a_server_that_is_gone_is_named(browser: Any, address: str):
    page = browser.new_page()
    page.goto(address)
    page.locator("#sample").click()
    playwright.expect(page.locator("#canvas")).to_be_visible()
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    page.locator("#prompt").fill("caption en")
    page.locator("#ask").click()
    status = page.locator("#status")
    playwright.expect(status).to_have_text("The server does not answer. Is it still running?")
    playwright.expect(status).to_have_class("bad")
    page.close()
