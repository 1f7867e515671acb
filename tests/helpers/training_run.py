"""Small runs of `pg-mlx train`: data of a few pictures, and the command in this process or in one of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from helpers.paths import ROOT
from pg_mlx.cli import main

COLORS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 60, 220)}
SMALL = (
    *("--iters", "6", "--batch-size", "3", "--learning-rate", "1e-3", "--lora-dropout", "0.1"),
    *("--steps-per-report", "1", "--steps-per-eval", "2", "--save-every", "2"),
)
"""A run of six steps with three saves, in which dropout shows whether it went on exactly."""


def color_data(folder: Path, rows: int = 9) -> Path:
    """Plain pictures and the question which colour they have, in three splits."""
    folder.mkdir(parents=True)
    for split, count in (("train", rows), ("valid", 3), ("test", 3)):
        lines = []
        for number in range(count):
            name, rgb = list(COLORS.items())[number % len(COLORS)]
            file = f"{split}{number}.png"
            Image.new("RGB", (40 + number, 40), rgb).save(folder / file)
            lines.append({"image": file, "prefix": "color en", "suffix": name})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def train(model: Path, data: Path, out: Path, *arguments: str) -> int:
    """The command in this process."""
    return main(["train", "--model", str(model), "--data", str(data), "--adapter-path", str(out), *SMALL, *arguments])


def resume(out: Path, *arguments: str) -> int:
    """Go on."""
    return main(["train", "--resume", "--adapter-path", str(out), *arguments])


def command(*arguments: str) -> list[str]:
    """The same for a process of its own."""
    return [sys.executable, "-m", "pg_mlx.train", *arguments]


def run_process(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """`pg-mlx train` in a process of its own. code: Python that runs first."""
    start = f"import sys; {code}; from pg_mlx.cli import command; command(['train', *sys.argv[1:]])"
    words = [sys.executable, "-c", start, *arguments] if code else command(*arguments)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def fingerprint(folder: Path, name: str = "adapter_model.safetensors") -> str:
    """Of a file's bytes."""
    return hashlib.sha256((folder / name).read_bytes()).hexdigest()
