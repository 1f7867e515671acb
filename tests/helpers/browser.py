"""A headless browser for tests of pages. Needs the extra `browser` and a Chromium, the system's or Playwright's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Playwright's Chromium. One for the whole session: a second one in the same process does not start."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pg_mlx[browser]")
    with playwright.sync_playwright() as running:
        own = running.chromium.executable_path
        path = shutil.which("chromium") or shutil.which("google-chrome") or (own if Path(own).exists() else None)
        if path is None:
            pytest.skip("there is no Chromium (playwright install chromium)")
        arguments = [*CAMERA, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = running.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()
