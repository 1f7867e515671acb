"""Jobs of `pg-mlx batch` in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.paths import ROOT

PROMPT = ("--prompt", "caption en")
"""The demo answers in a few words."""


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen:
    """Start the command with one thread and the bundled demo."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pg_mlx", "batch", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **{**pipes, **options})


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    """Run the command to its end."""
    process = start(*arguments)
    out, error = process.communicate(timeout=300)
    error = "".join(line for line in error.splitlines(True) if "no fast BLAS" not in line)
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows of a job, shard by shard."""
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def generated(*arguments: str | Path) -> list[dict[str, Any]]:
    """What `generate --format jsonl` answers, without its times."""
    command = [sys.executable, "-m", "pg_mlx", "generate", *map(str, arguments), "--format", "jsonl"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for answer in answers:
        del answer["stats"]
    return answers


def as_generated(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what `generate` does not print."""
    return {key: value for key, value in row.items() if key not in ("id", "error")}


def left_over(folder: Path) -> list[str]:
    """Files of a job's folder that are neither its shards nor job.json."""
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".jsonl", ".parquet", ".json"))
