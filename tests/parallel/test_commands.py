"""Commands on two ranks: what they print is what one process prints."""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.paths import ROOT
from helpers.server import data_uri

from benchmarks.parallel_ranks import Ranks, command, free_ports, run, run_alone
from pg_mlx.demo import CHECKPOINT

pytestmark = pytest.mark.xdist_group("ranks")

PICTURES = [str(ROOT / "pg_mlx" / "demo" / f"{name}.png") for name in ("scene", "dog", "portrait", "clutter")]
PIPELINE = ("--parallel", "pipeline", "--shares", "2:4")
PASSING = ("progress", "text", "region")
"""Messages of the worker after which others of the same request follow."""


def answers(out: str) -> list[dict[str, Any]]:
    """JSON lines without their times."""
    return [{key: value for key, value in json.loads(line).items() if key != "stats"} for line in out.splitlines()]


def test_generate() -> None:
    asked = ("--prompt", "detect red circle ; dog", "--constrain", "--min-score", "0")
    ask = ("generate", "--image", *PICTURES, *asked, "--batch-size", "3", "--format", "jsonl")
    alone, (first, second) = run_alone(*ask), run(2, *ask, *PIPELINE, "--verbose")
    assert first.returncode == second.returncode == 0, first.stderr
    assert answers(first.stdout) == answers(alone.stdout) and len(answers(first.stdout)) == 4
    held = [line.partition(";")[0] for line in first.stderr.splitlines() if line.startswith("rank ")]
    assert [line.partition(": ")[2] for line in held] == ["layers 1 to 2 of 6", "layers 3 to 6 of 6"]
    assert second.stdout == second.stderr == ""


def test_a_wrong_input_is_said_once() -> None:
    first, second = run(2, "generate", *PIPELINE, "--image", "no.jpg", "--prompt", "ocr")
    assert first.returncode == 2 and "no.jpg" in first.stderr and first.stderr.count("\n") == 1
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_serve() -> None:
    (port,) = free_ports(1)
    with Ranks([command("serve", "--port", str(port), *PIPELINE)]) as ranks:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            wait_for(client)
            body = {"prompt": "detect red circle", "image": data_uri(Path(PICTURES[0]))}
            found = client.post("/v1/regions", json=body).json()
        assert [region["label"] for region in found["regions"]] == ["red circle"], found
        ranks.processes[0].send_signal(signal.SIGTERM)
        first, second = ranks.finish()
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert second.stdout == second.stderr == ""


def wait_for(client: httpx.Client) -> None:
    """Until the server is ready."""
    for _ in range(600):
        with suppress(httpx.TransportError):
            if client.get("/health").status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("the server does not become ready")


def test_a_worker_loads_twice() -> None:
    """A new load replaces the model on all ranks; a load that is refused leaves them able to load again."""
    load = {"type": "load", "model": str(CHECKPOINT)}
    ask = {"type": "generate", "prompt": "caption en", "images": [{"path": PICTURES[0]}]}
    bad = {**load, "model": "./nowhere"}
    hello = {"type": "hello", "protocols": [1]}
    messages = [{**one, "id": number} for number, one in enumerate((hello, load, ask, bad, load, ask))]
    with Ranks([command("worker", *PIPELINE)]) as ranks:
        stdin, stdout = ranks.processes[0].stdin, ranks.processes[0].stdout
        assert stdin is not None and stdout is not None
        replies = {}
        for message in messages:
            stdin.write(json.dumps(message) + "\n")
            stdin.flush()
            while (reply := json.loads(stdout.readline())).get("id") != message["id"] or reply["type"] in PASSING:
                pass
            replies[message["id"]] = reply
        first, second = ranks.finish()
    assert [replies[number]["type"] for number in replies] == ["hello", "loaded", "done", "error", "loaded", "done"], (
        replies
    )
    assert replies[2]["text"] == replies[5]["text"] and replies[2]["text"]
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert second.stdout == second.stderr == ""


def test_bench() -> None:
    shared = ("--parallel", "tensor", "--shares", "2:1")
    first, second = run(2, "bench", *shared, "--rows", "1", "--repeats", "1", "--steps", "1", "--json")
    assert [stage["stage"] for stage in json.loads(first.stdout)["stages"]] == ["load", "vision", "prefill", "decode"]
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
