"""pg_mlx beside mlx-vlm and transformers on this machine: the same folders, pixels, ids, BLAS and threads, in turn.

    PG_MLX_PEER_PYTHON=... PG_MLX_TORCH_PYTHON=... python -m benchmarks.side_by_side [--settings NAME ...]

The variables name interpreters that have mlx-vlm, and torch with transformers; a program without its variable is left
out. For each setting every contestant has a process of its own (contestants.py), and they take turns: in each round
each one runs once, and another one begins each time. One round is not counted. A contestant that has used up --budget
seconds of a setting is left out of the later rounds; if its first run alone takes that long, it counts. Figures are
medians. The tables go into docs/performance.md between two marks, the plot beside it. --results keeps every figure in a
file after each setting; a later run with that file measures the given settings again and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.side_by_side import page
from benchmarks.side_by_side.contestants import CONTESTANTS
from benchmarks.side_by_side.results import BATCH, Json, Result, keep, kept
from benchmarks.side_by_side.settings import LONG_PROMPT, PROMPT, ROOT, SCENE, SETTINGS, STEPS, check_tokenizer
from pg_mlx.errors import InputError
from pg_mlx.measure import machine
from pg_mlx.processor import Processor

PYTHONS = {
    "pg_mlx": sys.executable,
    "pg_mlx --memory": sys.executable,
    "mlx-vlm": os.environ.get("PG_MLX_PEER_PYTHON"),
    "transformers float32": os.environ.get("PG_MLX_TORCH_PYTHON"),
    "transformers bfloat16": os.environ.get("PG_MLX_TORCH_PYTHON"),
}


def write_inputs(folder: Path, place: Path, prompt: str) -> tuple[Path, Path]:
    """The scene in all orientations: pixels float32 [B, 3, H, W], ids int32 [B, T] with the placeholders."""
    from PIL import Image

    config = json.loads((folder / "config.json").read_text())
    side = config["vision_config"]["image_size"]
    processor = Processor.from_folder(folder, side)
    picture = Image.open(SCENE).convert("RGB")
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = [one.rotate(90 * quarter, expand=True) for one in (picture, mirrored) for quarter in range(4)]
    pixels = np.stack([processor.pixels(one).transpose(2, 0, 1) for one in turned])
    ids = [config["image_token_index"]] * (side // 14) ** 2 + processor.prompt_ids(prompt)
    rows = np.array([ids] * BATCH, dtype=np.int32)
    one, many = place / "one.npz", place / "many.npz"
    np.savez(one, pixels=pixels[:1], ids=rows[:1])
    np.savez(many, pixels=pixels, ids=rows)
    return one, many


class Process:
    """A contestant whose process runs until `close` is called."""

    def __init__(self, name: str, threads: int):
        self.name = name
        python = PYTHONS[name]
        assert python is not None
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.side_by_side.contestants", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(threads),
            cwd=ROOT,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> Json:
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps({"do": do, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        found: Json = json.loads(line) if line else {"error": f"the process ended with {self._process.wait()}"}
        return found

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def environment(threads: int) -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, str(threads)), "HF_HUB_OFFLINE": "1"}


def note(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def measure(name: str, args: argparse.Namespace) -> list[Result]:
    """One setting: all its contestants in turn, then the batches of the demo."""
    setting = SETTINGS[name]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        note(f"{setting.title}: writing the checkpoint")
        folder = setting.folder(place, args.layers)
        one, many = write_inputs(folder, place, PROMPT if setting.model is None else LONG_PROMPT)
        processes = [Process(who, args.threads) for who in setting.contestants if PYTHONS[who]]
        results = {process: Result(name, process.name) for process in processes}
        try:
            for process, result in results.items():
                note(f"{setting.title}: {process.name} loads")
                result.error = process.ask("load", folder=str(folder)).get("error", "")
            take_turns(setting.title, results, str(one), args)
            if setting.model is None:
                take_turns_in_batches(results, str(many), args)
        finally:
            for process in processes:
                process.close()
        if setting.model is None:
            start_fresh(name, folder, results, args)
        return list(results.values())


def take_turns(title: str, results: dict[Process, Result], inputs: str, args: argparse.Namespace) -> None:
    spent = dict.fromkeys(results, 0.0)
    order = list(results)
    for turn in range(args.rounds + 1):
        for process in order[turn % len(order) :] + order[: turn % len(order)]:
            result = results[process]
            if result.error or spent[process] > args.budget:
                continue
            start = time.perf_counter()
            found = process.ask("run", inputs=inputs, steps=STEPS)
            taken = time.perf_counter() - start
            spent[process] += taken
            result.error = found.get("error", "")
            note(f"{title}, round {turn}: {process.name} {result.error or f'{taken:.2f} s'}")
            if not result.error and (turn > 0 or taken > args.budget):
                result.runs.append(found)


def take_turns_in_batches(results: dict[Process, Result], inputs: str, args: argparse.Namespace) -> None:
    spent: dict[tuple[Process, int], float] = {}
    for turn in range(args.rounds + 1):
        for process, result in results.items():
            for at_once in (1, BATCH):
                before = spent.get((process, at_once), 0.0)
                if result.error or before > args.budget:
                    continue
                start = time.perf_counter()
                found = process.ask("batch", inputs=inputs, steps=STEPS, at_once=at_once)
                taken = time.perf_counter() - start
                spent[process, at_once] = before + taken
                note(f"batches of {at_once}, round {turn}: {process.name} {found.get('error', f'{taken:.2f} s')}")
                if "error" not in found and (turn > 0 or taken > args.budget):
                    result.batches.setdefault(at_once, []).append(found)


def start_fresh(name: str, folder: Path, results: dict[Process, Result], args: argparse.Namespace) -> None:
    """From process start to the answer, as a person runs each of them."""
    preload = {} if sys.platform == "darwin" else {"LD_PRELOAD": os.environ.get("PG_MLX_BLAS", "libopenblas.so.0")}
    question = ["--model", str(folder), "--image", str(SCENE), "--prompt", PROMPT, "--max-tokens", "64"]
    for turn in range(args.rounds + 1):
        for process, result in results.items():
            if result.error:
                continue
            who, python, extra = process.name, str(PYTHONS[process.name]), dict[str, str]()
            if who == "pg_mlx":
                command = [python, str(ROOT / "generate.py"), *question]
            elif who == "mlx-vlm":
                command, extra = [python, "-m", "mlx_vlm.generate", *question, "--temperature", "0"], preload
            else:
                contestant = [python, "-m", "benchmarks.side_by_side.contestants", who]
                command = [*contestant, str(folder), str(SCENE), PROMPT]
            start = time.perf_counter()
            done = subprocess.run(
                command, cwd=ROOT, env=environment(args.threads) | extra, capture_output=True, text=True, check=False
            )
            taken = time.perf_counter() - start
            if done.returncode or "red circle" not in done.stdout.replace(PROMPT, ""):
                note(f"from process start: {who} fails: {(done.stderr or done.stdout)[-200:]}")
            elif turn > 0:
                result.starts.append(taken)
    note(f"{SETTINGS[name].title}: from process start done")


def versions(threads: int) -> str:
    found: dict[str, str] = {}
    for name, python in PYTHONS.items():
        if python is None:
            note(f"{name}: no interpreter given, left out")
            continue
        process = Process(name, threads)
        answer = process.ask("versions")
        process.close()
        if "error" in answer:
            note(f"{name}: cannot be run ({answer['error']}), left out")
            PYTHONS[name] = None
        else:
            found |= answer
    return ", ".join(f"{name} {number}" for name, number in sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: 5)")
    parser.add_argument("--budget", type=float, default=120, help="seconds for a contestant and setting (default: 120)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each (default: the CPU's cores)")
    parser.add_argument("--layers", type=int, default=4, help="of random models, tower and decoder (default: 4)")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md", help="where the tables go")
    parser.add_argument("--results", type=Path, metavar="FILE", help="JSON: figures of earlier runs, and of this one")
    args = parser.parse_args()
    assert set(PYTHONS) == set(CONTESTANTS)
    try:
        check_tokenizer(args.settings)
        numbers = versions(args.threads)
        described = machine.description()
        about = {"machine": described, "versions": numbers, "threads": args.threads, "layers": args.layers}
        results = kept(args.results, about)
        for name in args.settings:
            results[name] = measure(name, args)
            keep(args.results, about, results)
        every = [result for name in SETTINGS for result in results.get(name, [])]
        page.write(args.page, every, described, numbers, args)
    except InputError as error:
        parser.exit(2, f"side_by_side: error: {error}\n")


if __name__ == "__main__":
    main()
