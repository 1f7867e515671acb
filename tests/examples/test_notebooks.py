"""The notebooks of examples/: their cells run here on the demo, and say what the stored outputs say.

The cells are run as Python runs them, since a kernel of Jupyter needs forty packages. Lines that begin with "!"
go to a shell, as IPython does it. The stored outputs were made by Jupyter (examples/README.md)."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT
from PIL import Image

FOLDER = ROOT / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 300_000

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run(source: str, names: dict[str, Any]) -> tuple[str, Any]:
    """Execute a cell: what it prints, commands included, and the value of its last line."""
    shown = io.StringIO()

    def shell(command: str) -> None:
        whole = re.sub(r"\$(\w+)", lambda match: str(names[match[1]]), command)
        done = subprocess.run(whole, shell=True, capture_output=True, text=True, check=True)
        shown.write(done.stdout)

    source = re.sub(r"^!(.*)$", lambda match: f"_shell({match[1]!r})", source, flags=re.MULTILINE)
    tree, value = ast.parse(source), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    names["_shell"] = shell
    with contextlib.redirect_stdout(shown):
        exec(compile(tree, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return shown.getvalue(), value


def kinds(cell: dict[str, Any]) -> set[str]:
    return {kind for output in cell["outputs"] for kind in output.get("data", ["stream"])}


def words(page: str) -> str:
    """The text of HTML, without scores, which differ a little between machines."""
    return re.sub(r"\b[01]\.\d\d\b", "?", re.sub(r"<[^>]*>", " ", page))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run in, with the script that a notebook calls, and this environment's programs first."""
    shutil.copy(FOLDER / "draw_shapes.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return tmp_path


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["detect_and_segment", "fine_tune"]


@each
def test_outputs_are_stored_whole_and_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = code_cells(path)
    assert len(text.encode()) < MAX_BYTES
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert not re.search(r"/(tmp|root|home|Users)/", text) and "stderr" not in text


def test_detect_and_segment_says_what_is_stored(folder: Path) -> None:
    names: dict[str, Any] = {}
    for cell in code_cells(FOLDER / "detect_and_segment.ipynb"):
        printed, value = run("".join(cell["source"]), names)
        stored = "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")
        assert words(printed) == words(stored)
        [data] = [output["data"] for output in cell["outputs"] if "data" in output] or [{}]
        if "text/html" in data:
            assert words(value._repr_html_()) == words("".join(data["text/html"]))
        elif "image/png" in data:
            assert isinstance(value, Image.Image)
        elif data:
            assert value == ast.literal_eval("".join(data["text/plain"]))
        else:
            assert value is None
    assert (folder / "drawn.png").exists()


def test_fine_tune_runs(folder: Path) -> None:
    """Every cell, with fewer pictures and steps than the stored run had."""
    names: dict[str, Any] = {}
    for cell in code_cells(FOLDER / "fine_tune.ipynb"):
        source = re.sub(r"(?<=PICTURES, STEPS = )\d+, \d+", "8, 2", "".join(cell["source"]))
        printed, value = run(source, names)
        if "stream" in kinds(cell):
            assert printed
        if "text/html" in kinds(cell):
            assert value._repr_html_().count("<img ") == 4
    assert (names["PICTURES"], names["STEPS"]) == (8, 2)
    assert (folder / "learnt" / "best").is_dir() and len(names["answers"]) == 4
