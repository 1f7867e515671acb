"""The parts of the site's builder: links, docstrings, drawings."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import mlx.core as mx
import pytest

from pg_mlx.attention_mask import prefix_lm_mask
from tools.site import docstrings, drawings, outside

SVG = "{http://www.w3.org/2000/svg}"


def test_links_out_of_the_pages_are_taken_along(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "examples").mkdir()
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "demo/README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# Title\n[page](docs/a.md#part)" if "/" not in name else "[up](../docs/a.md)")
    page = "see [CONTRIBUTING.md](../CONTRIBUTING.md), [run](../examples/x.py), [gone](../gone.md), [b.md](b.md#there)"
    (tmp_path / "docs" / "a.md").write_text(page)
    (tmp_path / "docs" / "b.md").write_text("# The other page\n")
    (tmp_path / "examples" / "x.py").touch()
    found = outside.found(tmp_path)
    assert found["project/examples/x.py"] == tmp_path / "examples" / "x.py"
    assert "project/benchmarks/README.md" in found and len(found) == 6
    assert outside.relinked(page, "a.md", tmp_path) == (
        "see [Title](project/CONTRIBUTING.md), [run](project/examples/x.py), [gone](../gone.md),"
        " [The other page](b.md#there)"
    )
    assert outside.relinked("[page](docs/a.md#part)", "project/README.md", tmp_path) == "[page](../a.md#part)"
    assert outside.relinked("[up](../docs/a.md)", "project/demo/README.md", tmp_path) == "[up](../../a.md)"


def test_docstrings_keep_their_tokens() -> None:
    text = "ends with <eos>, not `<bos>`:\n\n    <loc0001> cat\n"
    assert docstrings.escaped(text) == "ends with &lt;eos>, not `<bos>`:\n\n    <loc0001> cat\n"


@pytest.mark.parametrize("path", drawings.files(), ids=lambda path: path.stem)
def test_the_drawings_are_those_that_the_script_makes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == drawings.files()[path]
    root = ElementTree.parse(path).getroot()
    title = root.find(f"{SVG}title")
    assert title is not None and title.text  # for screen readers
    assert re.match(r'<rect width="760"', path.read_text().split("\n")[3])  # its own ground, for dark pages


def test_the_drawn_mask_is_that_of_the_code() -> None:
    prefix, count = drawings.IMAGE_TOKENS + drawings.TEXT_TOKENS, 11
    expected = prefix_lm_mask(count, mx.array([prefix]), mx.array([count]))[0, 0].tolist()
    root = ElementTree.fromstring(str(drawings.prefix_mask()))
    cells = [shape.get("fill") != drawings.FREE for shape in root.findall(f"{SVG}rect") if shape.get("rx") == "3"]
    assert cells[: count * count] == [value for row in expected for value in row]
