"""What the demo learns: python -m benchmarks.learning --task largest (docs/training.md).

Makes a folder of data, trains with the command `pg-mlx train` and default flags but those that are shown, and scores
the result on scenes that were never seen: each task says what it measures. --keep FOLDER keeps data and runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.learning_data import captions, hearts, largest, outlines
from pg_mlx import load
from pg_mlx.conversion import convert
from pg_mlx.demo import CHECKPOINT


@dataclass(frozen=True)
class Task:
    """data: writes the folder. flags: of the command. old: whether the old skill is measured too."""

    data: Callable[[Path], None]
    flags: Sequence[str]
    old: bool = False
    quantized: bool = False


LARGEST = ("--iters", "160", "--batch-size", "16", "--learning-rate", "2e-3")
TASKS = {
    "largest": Task(lambda folder: largest(folder, 600), LARGEST, old=True),
    "largest-4bit": Task(lambda folder: largest(folder, 600), LARGEST, quantized=True),
    "largest-mixed": Task(
        lambda folder: largest(folder, 2000),
        ("--iters", "140", "--batch-size", "16", "--learning-rate", "1e-3", "--mix", "{old}=0.25"),
        old=True,
    ),
    "hearts": Task(
        lambda folder: hearts(folder, 1000),
        ("--iters", "150", "--batch-size", "16", "--learning-rate", "2e-3", "--train-vision"),
    ),
    "outlines": Task(
        lambda folder: outlines(folder, 600),
        ("--iters", "120", "--batch-size", "16", "--learning-rate", "2e-3", "--task", "segment"),
    ),
}


def run(name: str, folder: Path, seed: int, extra: Sequence[str]) -> dict[str, object]:
    """Make the data, train, and score. Returns the figures."""
    task, data, old, out = (
        TASKS[name],
        folder / f"data-{name.split('-')[0]}",
        folder / "data-old",
        folder / f"run-{name}",
    )
    if name == "largest-mixed":
        data = folder / "data-largest-2000"
    if not data.exists():
        task.data(data)
    if not old.exists():
        captions(old)
    model = CHECKPOINT
    if task.quantized:
        model = folder / "demo-4bit"
        if not model.exists():
            convert(CHECKPOINT, model, q_bits=4, q_group_size=32, check=False)
    flags = [flag.format(old=old / "train.jsonl") for flag in task.flags]
    command = [
        *(sys.executable, "-m", "pg_mlx.train", "--model", str(model), "--data", str(data), "--adapter-path", str(out)),
        *("--test", "--format", "json", "--seed", str(seed), "--force", *flags, *extra),
    ]
    began, cpu = time.perf_counter(), os.times().children_user
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, object] = {
        "task": name,
        "seed": seed,
        "wall_s": round(time.perf_counter() - began),
        "cpu_s": round(os.times().children_user - cpu),
        **json.loads(done.stdout),
    }
    if name == "hearts":
        figures["constrained"] = {
            "before": box_scores(model, None, data),
            "after": box_scores(model, out / "best", data),
        }
    if task.old:
        figures["old_captions"] = {
            "before": caption_share(model, None, old),
            "after": caption_share(model, out / "best", old),
            "after_last": caption_share(model, out, old),
        }
    return figures


def box_scores(model: Path, adapter: Path | None, data: Path) -> dict[str, float | None]:
    """Recall, precision and mAP of the test split's boxes with constrained answers: the demo spells words that it never
    learnt letter by letter, and wrongly for long."""
    from pg_mlx.training.dataset import read_dataset
    from pg_mlx.training.evaluate import answers
    from pg_mlx.training.scores import score

    loaded, processor = load(model, adapter_path=adapter)
    found = answers(loaded, processor, read_dataset(data).test, batch_size=16, constrain=True) or []
    scores = score(found, ("map",))
    return {"recall": scores.recall50, "precision": scores.precision50, "map": scores.map}


def caption_share(model: Path, adapter: Path | None, old: Path) -> float:
    """The share of captions of held-out scenes in which every shape with its colour is named, and no other."""
    from pg_mlx.generation import batch_generate

    loaded, processor = load(model, adapter_path=adapter)
    rows = [json.loads(line) for line in (old / "test.jsonl").read_text().splitlines()]
    answers = batch_generate(
        loaded, processor, "caption en", [str(old / row["image"]) for row in rows], max_tokens=96, batch_size=16
    )
    return float(np.mean([names(one.text) == names(row["suffix"]) for one, row in zip(answers, rows, strict=True)]))


def names(text: str) -> list[str]:
    """The shapes that a caption names, in any order."""
    from demo.evaluate import NAMES

    return sorted(" ".join(found) for found in NAMES.findall(text))


def main() -> None:
    """Run one task, or all."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--task", choices=[*TASKS, "all"], default="largest")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--keep", type=Path, help="folder for data and runs")
    args, extra = p.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in TASKS if args.task == "all" else (args.task,):
            print(json.dumps(run(name, folder, args.seed, extra)), flush=True)


if __name__ == "__main__":
    main()
