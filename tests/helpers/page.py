"""The page of `pg-mlx serve` in a browser. Needs the extra `browser` and a Chromium, the system's or Playwright's."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pg_mlx.regions import Region

from .paths import ROOT
from .service import SCENE

SIZES = {"desktop": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}
FIRST = np.array([0xD6, 0x00, 0x6C])
"""The page's first colour."""
COVER = 110 / 255
"""How much of it a mask has."""
LINE, LETTERS = 2, 20
"""Width of a box's line, and height of a label, on a picture of this size."""
PICTURE = np.asarray(Image.open(SCENE).convert("RGB")).astype(int)
"""int [height, width, 3]"""
TIMEOUT_MS = 30_000


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """The address of a server of the demo, in a process of its own."""
    command = [sys.executable, "-m", "pg_mlx", "serve", "--port", "0", *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            yield next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        finally:
            process.kill()


@pytest.fixture(scope="session")
def page_address() -> Iterator[str]:
    with serving() as address:
        yield address


@contextmanager
def opened(browser: Any, address: str, **context: Any) -> Iterator[Any]:
    """The page once the model answers. What the browser finds wrong with the page fails the test."""
    wrong: list[str] = []
    context = browser.new_context(**{"viewport": SIZES["desktop"], **context})
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    while page.request.get(f"{address}/health").status == 503:
        page.wait_for_timeout(200)
    page.goto(address)
    page.locator("#model").filter(has_text="demo, 112 px").wait_for()
    yield page
    context.close()
    assert [text for text in wrong if "Failed to load resource" not in text] == []  # those are a test's own


@pytest.fixture
def page(browser: Any, page_address: str) -> Iterator[Any]:
    with opened(browser, page_address) as page:
        yield page


def status(page: Any, text: str, bad: bool = False) -> None:
    """Wait until the page says this."""
    page.locator("#status.bad" if bad else "#status:not(.bad)").filter(has_text=text).wait_for()


def choose(page: Any, *files: Path | dict[str, Any]) -> None:
    """Choose files, each a path or {name, mimeType, buffer}, and wait until the last one is in the strip."""
    before = page.locator(".thumb").count()
    page.locator("#file").set_input_files(list(files))
    page.locator(".thumb").nth(before + len(files) - 1).wait_for()


def put(page: Any, event: str, data: bytes, kind: str, name: str = "dropped") -> None:
    """Drop or paste a file. event: "drop" or "paste"."""
    page.evaluate(
        """([event, data, type, name]) => {
          const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0)), transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, { type }));
          const options = { bubbles: true, cancelable: true };
          if (event === "paste") {
            document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
          } else {
            for (const one of ["dragover", "drop"]) {
              document.body.dispatchEvent(new DragEvent(one, { ...options, dataTransfer: transfer }));
            }
          }
        }""",
        [event, base64.b64encode(data).decode(), kind, name],
    )


def ask(page: Any, prompt: str) -> list[tuple[str, int]]:
    """Ask, and wait for the end. Returns the model's own words and the number of boxes, each time that they grew while
    the answer was coming, and at the end."""
    page.evaluate(
        """() => {
          const [raw, found] = ["raw", "found"].map((id) => document.getElementById(id));
          window.seen = [];
          window.watching?.disconnect();
          window.watching = new MutationObserver(() => window.seen.push([raw.textContent, found.children.length]));
          window.watching.observe(document.getElementById("reply"), { childList: true, subtree: true });
        }"""
    )
    page.locator("#prompt").fill(prompt)
    page.locator("#ask").click()
    status(page, "Done in")
    seen = [(text, boxes) for text, boxes in page.evaluate("() => window.seen") if text]
    return list(dict.fromkeys(seen))


def answer_with(page: Any, text: str, regions: Sequence[dict[str, Any]] = ()) -> None:
    """Let the page's questions get this answer, whatever they are."""
    deltas = [{"content": text}, *({"regions": [region]} for region in regions), {}]
    events = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def region(label: str, *box: float) -> dict[str, Any]:
    """A region as the server sends it, in a picture of the scene's size."""
    height, width = PICTURE.shape[:2]
    normalized = [x / side for x, side in zip(box, (width, height, width, height), strict=True)]
    return {"label": label, "box": list(box), "box_normalized": normalized, "score": None, "mask": None}


def saved(page: Any) -> np.ndarray:
    """The picture as it is saved: int [height, width, 3]."""
    with page.expect_download() as download:
        page.locator("#save").click()
    return np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)


def drawn(page: Any) -> np.ndarray:
    """The picture as it is on screen: int [height, width, 3]."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    url = page.evaluate("() => document.getElementById('canvas').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")).astype(int)


def near(box: Sequence[float], beyond: float) -> np.ndarray:
    """Pixels of the scene that are so near to a box's edge: bool [height, width]."""
    y, x = np.mgrid[: PICTURE.shape[0], : PICTURE.shape[1]] + 0.5
    x0, y0, x1, y1 = box
    outside = (x < x0 - beyond) | (x > x1 + beyond) | (y < y0 - beyond) | (y > y1 + beyond)
    inside = (x > x0 + beyond) & (x < x1 - beyond) & (y > y0 + beyond) & (y < y1 - beyond)
    return ~(outside | inside)


def letters(box: Sequence[float]) -> np.ndarray:
    """Where a label may stand, from the box's upper left corner to the right: bool [height, width]."""
    y, x = np.mgrid[: PICTURE.shape[0], : PICTURE.shape[1]]
    return (abs(y - box[1]) <= LETTERS + 1) & (x >= min(box[0], PICTURE.shape[1] / 2) - 1)


def assert_drawn(pixels: np.ndarray, regions: Sequence[Region]) -> None:
    """Each box's lines are where they should be, and masks' colour; everywhere else is the picture. regions: of one
    label, so that they have the first colour."""
    anything = np.zeros(PICTURE.shape[:2], bool)
    masked = np.zeros_like(anything)
    for one in regions:
        line = near(one.box, LINE / 2 - 0.5) & ~letters(one.box)
        assert line.sum() > 50 and abs(pixels[line] - FIRST).max(axis=-1).mean() < 40, one
        anything |= near(one.box, LINE / 2 + 1) | letters(one.box)
        masked |= one.mask if one.mask is not None else False
    expected = np.where(masked[..., None], PICTURE * (1 - COVER) + FIRST * COVER, PICTURE)
    assert abs(pixels - expected)[~anything].max() <= 3
    assert not regions or abs(pixels - PICTURE)[anything].max() > 50
