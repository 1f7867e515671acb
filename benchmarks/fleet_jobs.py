"""(part of `fleet_parts`, `fleet_ray` and `fleet_hosts`) Scenes of the demo, jobs about them, and their right rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PROMPT = "caption en"


def make_scenes(folder: Path, count: int) -> Path:
    """So many pictures of the demo's test scenes, as files."""
    from demo.scenes import TEST_SEEDS, make_scene

    folder.mkdir()
    for number in range(count):
        make_scene(TEST_SEEDS[0] + number).image.save(folder / f"{number:04}.png")
    return folder


def expected_of(scenes: Path) -> list[dict[str, Any]]:
    """What `pg-mlx generate` answers about a folder, without its times."""
    command = [sys.executable, "-m", "pg_mlx", "generate", "--image", str(scenes), "--prompt", PROMPT]
    done = subprocess.run([*command, "--format", "jsonl"], cwd=ROOT, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for answer in answers:
        del answer["stats"]
    return answers


def start(scenes: Path, job: Path, *more: str, threads: str | None = "1") -> subprocess.Popen[str]:
    """Start `pg-mlx batch` with the bundled demo. threads: of BLAS and NumPy; None leaves them to the program."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = threads
    command = [sys.executable, "-m", "pg_mlx", "batch", str(scenes), "--prompt", PROMPT, "--to", str(job), *more]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


class Cost(NamedTuple):
    """What processes took until the last one had ended."""

    wall: float
    cpu: float


def finished(processes: list[subprocess.Popen[str]], began: float) -> Cost:
    """Wait for processes that began at a time of time.monotonic(). Ends the program if one has failed."""
    cpu = 0.0
    for process in processes:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu += usage.ru_utime + usage.ru_stime
        assert process.stderr is not None
        if process.returncode:
            raise SystemExit(f"exit code {process.returncode}: {process.stderr.read()}")
        process.stderr.close()
    return Cost(time.monotonic() - began, cpu)


class Verdict(NamedTuple):
    """How the rows of a job differ from what they should be. All are 0 if they are right."""

    lost: int
    doubled: int
    wrong: int
    left_over: int
    """Files of the folder that are neither shards nor job.json."""

    def __str__(self) -> str:
        return f"{self.lost} lost, {self.doubled} doubled, {self.wrong} wrong, {self.left_over} left over"


def verdict(job: Path, expected: list[dict[str, Any]]) -> Verdict:
    """Compare a job's rows, in their order, with what `generate` answers."""
    rows = [json.loads(line) for path in sorted(job.glob("*.jsonl")) for line in path.read_text().splitlines()]
    images = [row["image"] for row in rows]
    right = {answer["image"]: answer for answer in expected}
    found = [{key: value for key, value in row.items() if key not in ("id", "error")} for row in rows]
    return Verdict(
        lost=len(set(right) - set(images)),
        doubled=len(images) - len(set(images)),
        wrong=sum(row["error"] is not None for row in rows)
        + sum(answer != right.get(answer["image"]) for answer in found)
        + (images != sorted(images)),
        left_over=sum(path.suffix != ".jsonl" and path.name != "job.json" for path in job.iterdir()),
    )


def written(job: Path) -> dict[str, int]:
    """The shards that are whole, each with the time at which it was written."""
    return {path.name: path.stat().st_mtime_ns for path in job.glob("*.jsonl")}
