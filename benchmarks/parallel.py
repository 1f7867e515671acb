"""One model on several ranks, beside the same model in one process: are answers equal, what is read and held, how do
failures end?

    python -m benchmarks.parallel PART ...      (without PART: all that need no further files)

    exact      logits of 24 steps, pipeline bit by bit and tensor within 1e-4, on 2, 3 and 4 ranks
    commands   `mlx.launch -n N -- pg-mlx generate`, 24 scenes, every task, with and without --constrain
    order      requests that enter and leave by 200 random schedules
    relay      what a message costs: a relay between two ranks keeps everything for 2 ms
    bytes      what each rank reads and holds, of a FOLDER given with --model
                   (python -m tools.random_checkpoint --model paligemma2-28b-224 --layers 2 --q-bits 4 FOLDER)

Ranks run on this machine, one thread each. Failures and two hosts: benchmarks.parallel_hosts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import parallel_checks
from benchmarks.parallel_bytes import BEFORE
from benchmarks.parallel_ranks import ROOT, Ranks, command, free_ports, leading

MODELS = "benchmarks.parallel_cases"
SCENES = 24
TASKS = {
    "caption": ("caption en",),
    "describe": ("describe en",),
    "ocr": ("ocr",),
    "detect": ("detect red circle ; blue square ; green star",),
    "segment": ("segment red circle",),
    "detect, constrained": ("detect red circle ; blue square ; green star", "--constrain"),
    "segment, constrained": ("segment red circle", "--constrain"),
}
EXACT = ("pg1", "pg2", "pg2-adapter", "demo", "demo-adapter")
NEAR = (
    (2, "", ("pg1", "pg2")), (2, "3:1", ("pg1", "pg2")), (2, "2:1", ("demo",)), (3, "", ("pg1", "demo")),
    (4, "", ("pg1", "pg2")),
)  # fmt: skip
"""Ranks, shares, and checkpoints that can be divided so: pg2 has two heads of keys, the demo three heads."""
DELAY_MS = 2.0
ROUNDS = 3


def ran(size: int, function: str, *arguments: str, ops: str = "cpu", module: str = MODELS, **more: str) -> str:
    """What rank 0 printed; more: as `leading`. Ends the program if a rank failed, or another rank printed something."""
    program = leading(module, function, *arguments, **more)  # type: ignore[arg-type]
    with Ranks([program], size, PG_MLX_OPS=ops) as ranks:
        first, *others = ranks.finish()
    if first.returncode or any(one.returncode or one.stdout or one.stderr for one in others):
        raise SystemExit(f"{function} on {size} ranks failed:\n{first.stderr}")
    return first.stdout


def exact(_: argparse.Namespace) -> None:
    for size, shares in ((2, ""), (2, "1:3"), (3, ""), (3, "1:2:1")):
        for ops in ("cpu", "gpu"):
            ran(size, "pipeline_is_exact", shares, *EXACT, ops=ops)
            print(f"pipeline, {size} ranks, shares {shares or 'equal'}, {ops}: bit by bit", flush=True)
    for size, shares, names in NEAR:
        print(ran(size, "tensor_is_near", shares, *names), end="", flush=True)
    checks = "benchmarks.parallel_checks"
    for family, size, many_bytes in (("pg2", 2, 1 << 18), ("pg1", 3, 1 << 18), ("pg1", 3, 0), ("pg2", 4, 0)):
        before = parallel_checks.BEFORE.format(many_bytes=many_bytes)
        ran(size, "tensor_ranks_are_alike", family, module=checks, before=before, follower="Watched")
        print(f"tensor, {family}, {size} ranks: all ranks have the same bits", flush=True)
    for size in (2, 3, 4):
        before = parallel_checks.BEFORE.format(many_bytes=1 << 18)
        ran(size, "pipeline_messages", module=checks, before=before, follower="Watched")
        print(f"pipeline, {size} ranks: {size + 1} messages a pass", flush=True)


def order(args: argparse.Namespace) -> None:
    for mode in ("pipeline", "tensor"):
        ran(2, "order_law", mode, str(args.schedules))
        print(f"{mode}: {args.schedules} random schedules, no answer differs", flush=True)


def commands(args: argparse.Namespace) -> None:
    """Compares JSON lines, but for times."""
    from demo.scenes import TEST_SEEDS, make_scene

    with tempfile.TemporaryDirectory() as folder:
        for index, seed in enumerate(TEST_SEEDS[:SCENES]):
            make_scene(seed).image.save(Path(folder) / f"{index:02}.png")
        launch = [str(Path(sys.executable).with_name("mlx.launch"))]
        for name, (prompt, *flags) in TASKS.items():
            ask = command("generate", "--image", folder, "--prompt", prompt, *flags, "--batch-size", "5")
            ask += ["--format", "jsonl", "--max-tokens", "64"]
            alone = lines(ask)
            for mode in ("pipeline", "tensor"):
                for size in args.ranks:
                    if mode == "tensor" and size > 3:
                        continue
                    found = lines([*launch, "-n", str(size), "--", *ask, "--parallel", mode])
                    equal = sum(one == other for one, other in zip(alone, found, strict=True))
                    print(f"{name}: {mode}, {size} ranks: {equal} of {len(alone)} lines equal", flush=True)


def lines(ask: Sequence[str]) -> list[dict[str, Any]]:
    """JSON lines of a command without their times, by picture."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(ask, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for answer in answers:
        del answer["stats"]
    return sorted(answers, key=lambda answer: answer["image"])


def relay(args: argparse.Namespace) -> None:
    """Each rank's own list of hosts names a relay as its neighbour."""
    for mode in ("pipeline", "tensor"):
        seconds = {0.0: math.inf, DELAY_MS: math.inf}
        for delay in [*seconds] * ROUNDS:  # taking turns, so that other work of the machine slows both
            found = relayed_step(mode, delay)
            seconds[delay] = min(seconds[delay], found["step_s"])
        grown = (seconds[DELAY_MS] - seconds[0.0]) * 1e3
        print(
            f"{mode}: {found['messages']} messages a step; it takes {seconds[0.0] * 1e3:.2f} ms, with {DELAY_MS:g} ms "
            f"on the way {seconds[DELAY_MS] * 1e3:.2f} ms: {grown / DELAY_MS:.1f} times the delay more",
            flush=True,
        )


def relayed_step(mode: str, delay: float) -> dict[str, Any]:
    """`timed_step` with two relays that keep everything for so many milliseconds."""
    own, between = free_ports(2), free_ports(2)
    program = [sys.executable, "-m", "benchmarks.parallel_relay"]
    ends = zip(between, own, strict=True)
    relays = [subprocess.Popen([*program, str(a), str(b), str(delay)], cwd=ROOT) for a, b in ends]
    time.sleep(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return timed_step(Path(folder), mode, own, between)
    finally:
        for one in relays:
            one.kill()


def timed_step(folder: Path, mode: str, own: list[int], between: list[int]) -> dict[str, Any]:
    """Two ranks, of which each reaches the other through a relay: the fastest step of the demo."""
    processes = []
    for rank in (0, 1):
        ports = [own[one] if one == rank else between[one] for one in (0, 1)]
        (folder / f"{rank}.json").write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MLX_RANK": str(rank)}
        environment["MLX_HOSTFILE"] = str(folder / f"{rank}.json")
        ask = leading(MODELS, "fastest_step", mode)
        processes.append(subprocess.Popen(ask, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    out, _ = processes[0].communicate(timeout=300)
    processes[1].communicate(timeout=60)
    return dict(json.loads(out))


def bytes_read(args: argparse.Namespace) -> None:
    if args.model is None:
        print("bytes: needs --model FOLDER")
        return
    alone = f"import pg_mlx; from benchmarks.parallel_bytes import alone; alone({str(args.model.resolve())!r})"
    environment = {**os.environ, "PG_MLX_OPS": "gpu", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", alone], cwd=ROOT, env=environment, check=True)
    for mode, shares in (("pipeline", "1:1"), ("tensor", "1:1"), ("tensor", "10:6")):
        ask = (mode, shares, str(args.model.resolve()))
        program = leading(
            "benchmarks.parallel_bytes", "what_is_held", *ask, before=BEFORE, follower="MeasuredFollower", silence=600
        )
        with Ranks([program], 2, PG_MLX_OPS="gpu") as ranks:
            for one in ranks.finish():
                print("".join(f"{mode} {shares}, {line}\n" for line in one.stdout.splitlines()) or one.stderr, end="")


PARTS = {"exact": exact, "commands": commands, "order": order, "relay": relay, "bytes": bytes_read}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", choices=[*PARTS, []])
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="for bytes")
    parser.add_argument("--schedules", type=int, default=200, metavar="N", help="of order (default: 200)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3], metavar="N", help="of commands (default: 2 3)")
    args = parser.parse_args()
    for part in args.parts or PARTS:
        PARTS[part](args)


if __name__ == "__main__":
    main()
