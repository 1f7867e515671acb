"""Commands on two ranks: what they print is what one process prints."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT
from helpers.ranks import Ranks, command, free_ports, run

pytestmark = pytest.mark.xdist_group("ranks")

PICTURES = [str(ROOT / "pg_mlx" / "demo" / f"{name}.png") for name in ("scene", "dog", "portrait", "clutter")]
PIPELINE = ("--parallel", "pipeline", "--shares", "2:4")


def answers(out: str) -> list[dict[str, Any]]:
    """JSON lines without their times."""
    return [{key: value for key, value in json.loads(line).items() if key != "stats"} for line in out.splitlines()]


def test_generate() -> None:
    prompts = ("--prompt", "detect red circle ; dog", "--prompt", "caption en", "--constrain", "--min-score", "0")
    ask = ("generate", "--image", *PICTURES, *prompts[:2], *prompts[4:], "--batch-size", "3", "--format", "jsonl")
    alone = subprocess.run(command(*ask), cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = run(2, *ask, *PIPELINE)
    assert first.returncode == second.returncode == 0, first.stderr
    assert answers(first.stdout) == answers(alone.stdout) and len(answers(first.stdout)) == 4
    assert second.stdout == second.stderr == ""


def test_a_wrong_input_is_said_once() -> None:
    first, second = run(2, "generate", *PIPELINE, "--image", "no.jpg", "--prompt", "ocr")
    assert first.returncode == 2 and "no.jpg" in first.stderr and first.stderr.count("\n") == 1
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_serve() -> None:
    (port,) = free_ports(1)
    with Ranks([command("serve", "--port", str(port), *PIPELINE)]) as ranks:
        address = f"http://127.0.0.1:{port}"
        while not answers_health(f"{address}/health"):
            time.sleep(0.1)
        picture = Path(PICTURES[0]).read_bytes()
        body, kind = form(picture, "detect red circle")
        request = urllib.request.Request(f"{address}/v1/regions", body, {"Content-Type": kind})
        found = json.load(urllib.request.urlopen(request, timeout=120))
        assert [region["label"] for region in found["regions"]] == ["red circle"]
        ranks.processes[0].send_signal(signal.SIGTERM)
        first, second = ranks.finish()
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert second.stdout == second.stderr == ""
