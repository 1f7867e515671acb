"""The page's document and its Content-Security-Policy, without a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest
from helpers.house import PACKAGE

from pg_mlx.serving.http.page import SCRIPTS, Page

FOLDER = PACKAGE / "serving/http/page"
SOURCES = sorted(path for kind in ("html", "css", "js") for path in FOLDER.glob(f"*.{kind}"))


def test_every_file_is_in_the_document():
    document = Page().document.decode()
    assert sorted(SCRIPTS) == sorted(path.stem for path in FOLDER.glob("*.js"))
    for path in SOURCES:
        if path.suffix != ".html":
            assert document.count(path.read_text()) == 1, path.name
    assert document.count("<script>") == document.count("</script>") == document.count("<style>") == 1
    assert "<!--" not in document


def test_the_policy_allows_this_script_and_style_and_nothing_else():
    page = Page()
    for tag in ("script", "style"):
        (block,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.document.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in page.policy
    assert "default-src 'none'" in page.policy and "connect-src 'self'" in page.policy and "unsafe" not in page.policy


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_source_makes_no_html_names_no_other_server_and_is_short(path: Path):
    text = path.read_text()
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser", text)
        == []
    )
    assert re.findall(r"\son\w+=\"|\sstyle=\"|javascript:", text) == [], "the policy forbids it"
    assert [url for url in re.findall(r"https?://[^\s'\"]+", text) if url != "http://www.w3.org/2000/svg"] == []
    assert len(text.splitlines()) <= 300
