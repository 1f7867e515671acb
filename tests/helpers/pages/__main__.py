"""Runs the blocks of pages, all in one process: python -m helpers.pages SHARED RESULTS PAGE...

SHARED: the folder that `world.make` fills, or has filled. RESULTS: a line of JSON for each block that was run, with
`block`, `error` (empty if it worked), `notes`, `seconds` and `cpu_seconds` (those of processes that it starts are
left out)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from helpers.pages.blocks import Block, blocks_of
from helpers.pages.shell import Failed, Shell
from helpers.pages.world import furnish, make
from helpers.paths import ROOT
from pg_mlx.conversion import answers


def run_block(block: Block, shell: Shell, names: dict[str, Any]) -> str:
    """Run a block. Returns what is wrong, or nothing."""
    try:
        if block.before:
            exec(compile(block.before, f"before {block.name}", "exec"), names)
        if block.kind == "shell":
            shell.run(block.to_run)
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                text = block.to_run.replace(":8080", f":{shell.port}")
                exec(compile("\n" * block.line + text, block.page, "exec"), names)
    except Failed as error:
        return str(error)
    except Exception:
        return traceback.format_exc(limit=-3)
    return ""


def run_page(page: str, shared: Path, results: Path) -> None:
    """Run the blocks of a page in a folder of its own, one after the other."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [block for block in blocks_of(page, text) if block.kind != "shown" and not block.reason]
    if not blocks:
        return
    folder = shared / "pages" / page.replace("/", "-")
    folder.mkdir(parents=True)
    furnish(folder, shared, text)
    os.chdir(folder)
    shell, names = Shell(), dict[str, Any]()
    try:
        for block in blocks:
            shell.notes.clear()
            begun, cpu = time.perf_counter(), time.process_time()
            error = run_block(block, shell, names)
            seconds = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
            line = {"block": block.name, "error": error, "notes": shell.notes, **seconds}
            with results.open("a") as file:
                file.write(json.dumps(line) + "\n")
    finally:
        shell.close()


if __name__ == "__main__":
    shared, results = Path(sys.argv[1]), Path(sys.argv[2])
    answers.MAX_TOKENS = 4  # a random model seldom says <eos>, and its answers would calibrate for long
    make(shared)
    for page in sys.argv[3:]:
        run_page(page, shared, results)
