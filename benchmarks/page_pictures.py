"""Take the pictures of docs/server.md: the page of `pg-mlx serve`, on a desk and on a phone, light and dark.

    python -m benchmarks.page_pictures docs/pictures

Needs the extra `browser` and a Chromium. The server answers with the bundled demo.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from pg_mlx.demo import CHECKPOINT

SIZES = {"desktop": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}
OTHERS = [str(CHECKPOINT.with_name(f"{name}.png")) for name in ("clutter", "dog", "portrait")]


def ask(page: Any, prompt: str) -> None:
    """Ask, and wait for the end of the answer."""
    page.locator("#prompt").fill(prompt)
    page.locator("#ask").click()
    page.locator("#status").filter(has_text="Done in").wait_for()


def mask(page: Any) -> None:
    """Several pictures and questions, and a mask."""
    page.locator("#file").set_input_files(OTHERS)
    page.locator(".thumb").nth(2).wait_for()
    ask(page, "caption en")
    page.get_by_role("button", name="Picture 2", exact=False).first.click()
    ask(page, "ocr")
    page.evaluate("takeSample()")
    page.locator("#found li").nth(1).wait_for()
    page.locator("#status").filter(has_text="Done in").wait_for()
    ask(page, "segment blue star")


def lit(page: Any) -> None:
    """One of two boxes stands out."""
    mask(page)
    ask(page, "detect red circle ; blue star")
    page.locator("#found input").first.focus()


SCENES = {
    ("desktop", "light"): mask,
    ("desktop", "dark"): lit,
    ("phone", "light"): lambda page: None,
    ("phone", "dark"): mask,
}


def main() -> None:
    """Take them all."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    command = [sys.executable, "-m", "pg_mlx", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as running:
        assert server.stderr
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://\S+", line)))
        browser: Any = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for (size, scheme), prepare in SCENES.items():
            page = browser.new_page(viewport=SIZES[size], color_scheme=scheme, reduced_motion="reduce")
            while page.request.get(f"{address}/health").status == 503:
                time.sleep(0.2)
            page.goto(address)
            page.locator("#model").filter(has_text="px").wait_for()
            prepare(page)
            page.evaluate("scrollTo(0, 0)")
            page.wait_for_timeout(500)
            shot = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
            shot.save(folder / f"page-{size}-{scheme}.webp", quality=88, method=6)
            page.close()
        browser.close()
        server.kill()


if __name__ == "__main__":
    main()
