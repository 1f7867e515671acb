"""Are two processes of `pg-mlx batch --part` twice as fast as one, and what do those leave that are killed?

    python -m benchmarks.fleet_parts --count 1000 --rounds 3
    python -m benchmarks.fleet_parts --kills 10

One process and two take turns. The figures are medians of the rounds: wall seconds from the start to the last end, CPU
seconds of all processes, and how many cores other programs used meanwhile. Rows are compared with those of `generate`.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.fleet_jobs import Cost, expected_of, finished, make_scenes, start, verdict, written

PARTS = {1: ("1/1",), 2: ("1/2", "2/2")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="pictures (default: 1000)")
    parser.add_argument("--shard", type=int, default=100, help="pictures of a shard (default: 100)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", choices=("1", "all"), default="1", help="OMP_NUM_THREADS; all: not set")
    parser.add_argument("--kills", type=int, help="kill one process or both at so many random moments instead")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        if args.kills:
            kill(Path(place), args.kills)
        else:
            compare(Path(place), args.count, args.shard, args.rounds, None if args.threads == "all" else "1")


def compare(place: Path, count: int, shard: int, rounds: int, threads: str | None) -> None:
    scenes = make_scenes(place / "scenes", count)
    expected = expected_of(scenes)
    costs: dict[int, list[Cost]] = {1: [], 2: []}
    for turn in range(rounds):
        for parts, names in PARTS.items():
            job, began, others = place / f"{parts}-{turn}", time.monotonic(), busy()
            more = ("--shard", str(shard))
            processes = [start(scenes, job, *more, "--part", part, threads=threads) for part in names]
            cost = finished(processes, began)
            costs[parts].append(cost)
            others = (busy() - others - cost.cpu) / cost.wall
            print(
                f"{parts} process(es): {cost.wall:.1f} s, CPU {cost.cpu:.1f} s; others used {others:.2f} cores; "
                f"{verdict(job, expected)}",
                flush=True,
            )
    walls, cpus = ({parts: median(getattr(c, name) for c in costs[parts]) for parts in PARTS} for name in Cost._fields)
    print(
        f"medians: {walls[1]:.1f} s and {walls[2]:.1f} s ({walls[2] / walls[1]:.2f} x); CPU {cpus[1]:.1f} s and "
        f"{cpus[2]:.1f} s ({cpus[2] / cpus[1]:.2f} x)"
    )


def busy() -> float:
    """CPU seconds of all programs of this machine since its start."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def kill(place: Path, moments: int) -> None:
    """Kill one of two processes, or both, at random moments; then give the same lines again."""
    scenes, chance = make_scenes(place / "scenes", 60), random.Random(19)
    expected: list[dict[str, Any]] = expected_of(scenes)
    calm = finished(both(scenes, place / "calm"), time.monotonic()).wall
    for moment in range(moments):
        job, delay = place / str(moment), chance.uniform(0.2, 1) * calm
        processes = both(scenes, job)
        time.sleep(delay)
        killed = processes[: 1 + moment % 2]
        for process in killed:
            process.kill()
        for process in processes:
            process.communicate()
        job.mkdir(exist_ok=True)
        before = written(job)
        finished(both(scenes, job), time.monotonic())
        after = written(job)
        again = sum(after[name] != before[name] for name in before)
        print(
            f"{len(killed)} killed after {delay:.1f} s, {len(before)} of 12 shards whole: {verdict(job, expected)}, "
            f"{again} whole shards answered again",
            flush=True,
        )


def both(scenes: Path, job: Path) -> list[Any]:
    return [start(scenes, job, "--shard", "5", "--part", part) for part in PARTS[2]]


if __name__ == "__main__":
    main()
