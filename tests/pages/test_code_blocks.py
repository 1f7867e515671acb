"""Every block of code on README and the pages is run, or says why not (tests/helpers/pages/blocks.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from helpers.pages.blocks import blocks_of
from helpers.pages.shell import environment
from helpers.paths import ROOT

PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/**/*.md"))]
BLOCKS = [block for page in PAGES for block in blocks_of(page, (ROOT / page).read_text(encoding="utf-8"))]
CODE = [block for block in BLOCKS if block.kind != "shown"]
RUN = [block for block in CODE if not block.reason]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each block did. One process runs them all, since importing costs more than most of them."""
    folder = tmp_path_factory.mktemp("pages")
    shared, lines = folder / "shared", folder / "results.jsonl"
    shared.mkdir()
    lines.touch()
    done = subprocess.run(
        [sys.executable, "-m", "helpers.pages", shared, lines, *PAGES],
        env=environment(shared),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, f"after {lines.read_text().splitlines()[-1:]}\n{done.stderr[-4000:]}"
    found = {line["block"]: line for line in map(json.loads, lines.read_text().splitlines())}
    for line in found.values():
        print(
            f"{line['seconds']:6.1f} s, CPU {line['cpu_seconds']:5.1f} s  {line['block']}  {'; '.join(line['notes'])}"
        )
    return found


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_a_block_of_code_runs(block, results) -> None:
    assert results[block.name]["error"] == "", f"{block.name}\n{block.to_run}\n{results[block.name]['error']}"


def test_what_is_run_and_what_is_not() -> None:
    """`pytest -rP` prints the counts and the reasons."""
    kinds, reasons = Counter(block.kind for block in RUN), Counter(block.reason for block in CODE if block.reason)
    print(f"{len(BLOCKS)} blocks: {len(RUN)} run ({kinds['shell']} of commands, {kinds['python']} of Python),")
    print(f"{sum(reasons.values())} not run, {len(BLOCKS) - len(CODE)} show data, output or drawings")
    for reason, count in reasons.most_common():
        print(f"  {count} not run: {reason}")
    assert all(len(reason.split()) >= 3 for reason in reasons)
    assert len(RUN) > sum(reasons.values())  # most are run


def test_comments_belong_to_code() -> None:
    """A comment above a block that shows data would do nothing."""
    assert [
        block.name for block in BLOCKS if block.kind == "shown" and (block.reason or block.shorter or block.before)
    ] == []
    assert [block.name for block in CODE if block.reason and (block.shorter or block.before)] == []
    assert [block.name for block in CODE if not block.to_run.strip()] == []


def test_blocks_and_their_comments_are_found() -> None:
    page = "\n".join(
        [
            "# Title",
            "<!-- not run: no Mac here -->",
            "",
            "    pg-mlx doctor",
            "",
            "A list:",
            "<!-- shorter: a => b -->",
            "```python",
            "a = 1",
            "```",
            "    not code, a paragraph goes on",
            "",
            "    X=1 python generate.py \\",
            "        --image a",
            "",
            '    {"json": 1}',
        ]
    )
    found = blocks_of("page.md", page)
    assert [(block.line, block.kind, block.reason) for block in found] == [
        (4, "shell", "no Mac here"),
        (8, "python", ""),
        (13, "shell", ""),
    ]
    assert found[1].to_run == "b = 1" and found[0].name == "page.md:4"
    assert found[2].text.splitlines()[1] == "    --image a"
