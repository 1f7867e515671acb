"""What do deaths on a Ray cluster leave of a job, and what does Ray cost?

    python -m benchmarks.fleet_ray --moments 10
    python -m benchmarks.fleet_ray --data
    python -m benchmarks.fleet_ray --cost

Needs Ray. The cluster has two nodes on this machine. In turn an actor, a node and the command itself (the driver) are
killed with SIGKILL, at moments drawn between the first actor's start and the end of a calm run. After a driver's death
the same line is given again. `--data` does this to a pipeline of Ray Data with a Predictor and a CheckpointConfig, in
place of `pg-mlx batch --engine ray`. `--cost` counts the CPU seconds of all processes of Ray, shard by shard, and
beside them those of one process without Ray. The first shard is start-up.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.fleet_data import make_tables, texts
from benchmarks.fleet_jobs import ROOT, Verdict, expected_of, make_scenes, start, verdict, written

NODE: dict[str, Any] = {"num_cpus": 2, "resources": {"mlx": 1}, "object_store_memory": 100 << 20}
SHARD = 10
ACTORS = (b"ray::_Actor", b"ray::MapWorker", b"ray::_MapWorker")
Process = subprocess.Popen[str]
PATIENCE_S = 300
IDLE_S = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="pictures (default: 200)")
    parser.add_argument("--moments", type=int, default=10, help="how often something is killed (default: 10)")
    parser.add_argument("--seed", type=int, default=19)
    parser.add_argument("--data", action="store_true", help="a pipeline of Ray Data with a Predictor")
    parser.add_argument("--cost", action="store_true", help="count CPU seconds instead")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as place:
        scenes = make_scenes(Path(place) / "scenes", args.count)
        if args.cost:
            costs(scenes, Path(place))
            return
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            cluster.add_node(**NODE)
            cluster.wait_for_nodes()
            kind = Pipeline if args.data else Command
            kill(cluster, kind(scenes, Path(place), cluster.address), args.moments, random.Random(args.seed))
        finally:
            cluster.shutdown()


class Command:
    """Jobs of `pg-mlx batch --engine ray`, by a name."""

    may_end = False
    """Whether the death of an actor or a node may end a run."""

    def __init__(self, scenes: Path, place: Path, address: str):
        self._scenes, self._place, self._address = scenes, place, address
        self._expected = expected_of(scenes)

    def start(self, name: str) -> Process:
        more = ("--shard", str(SHARD), "--engine", "ray", "--address", self._address)
        return start(self._scenes, self._place / name, *more)

    def rows(self, name: str) -> int:
        """How many rows are in files."""
        return SHARD * len(written(self._place / name))

    def verdict(self, name: str) -> Verdict:
        return verdict(self._place / name, self._expected)


class Pipeline(Command):
    """Runs of `fleet_data`, by a name."""

    may_end = True  # Ray Data has actors of its own on the nodes

    def __init__(self, scenes: Path, place: Path, address: str):
        super().__init__(scenes, place, address)
        self._tables = make_tables(scenes, place / "tables", SHARD)

    def start(self, name: str) -> Process:
        places = (str(self._tables), str(self._place / name), str(self._place / f"{name}-checkpoints"))
        command = [sys.executable, "-m", "benchmarks.fleet_data", *places, self._address]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def rows(self, name: str) -> int:
        return len(texts(self._place / name))

    def verdict(self, name: str) -> Verdict:
        found = texts(self._place / name)
        paths, right = {path for path, _ in found}, {answer["image"]: answer["text"] for answer in self._expected}
        wrong = sum(text != right.get(path) for path, text in found)
        kept = [path for path in (self._place / name).rglob("*") if path.is_file() and path.suffix != ".parquet"]
        return Verdict(len(set(right) - paths), len(found) - len(paths), wrong, len(kept))


def kill(cluster: Any, work: Command, moments: int, chance: random.Random) -> None:
    process = work.start("calm")
    wait(actors)
    began = time.monotonic()
    end(process)
    span = time.monotonic() - began
    print(f"calm: {span:.1f} s from the first actor to the end; {work.verdict('calm')}", flush=True)
    for moment, what in zip(range(moments), cycle(("actor", "node", "driver")), strict=False):
        wait(lambda: not actors())
        name, delay = str(moment), chance.uniform(0, span)
        process = work.start(name)
        wait(actors)
        time.sleep(delay)
        before = work.rows(name)
        if what == "actor":
            os.kill(chance.choice(wait(actors)), signal.SIGKILL)
        elif what == "node":
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        else:
            process.kill()
            process.communicate()
            wait(lambda: not actors())
            process = work.start(name)
        began, again = time.monotonic(), ""
        try:
            end(process)
        except SystemExit:
            if not work.may_end:
                raise
            again = "it ended, and its line was given again; "
            wait(lambda: not actors())
            end(work.start(name))
        seconds = time.monotonic() - began
        wait(lambda: not actors())
        print(
            f"{what} killed {delay:.1f} s after the first actor's start, {before} rows written: "
            f"{again}{work.verdict(name)}, no actor left; {seconds:.1f} s more",
            flush=True,
        )
        if what == "node":
            cluster.add_node(**NODE)
            cluster.wait_for_nodes()


def end(process: Process) -> None:
    """Wait for a run. Ends the program if it has failed."""
    _, error = process.communicate(timeout=PATIENCE_S)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {error}")


def actors() -> list[int]:
    """The processes of this program's clusters that answer."""
    return [pid for pid, _, name in processes() if name.startswith(ACTORS)]


def wait(condition: Callable[[], Any]) -> Any:
    began = time.monotonic()
    while not (found := condition()):
        if time.monotonic() - began > PATIENCE_S:
            raise SystemExit(f"not after {PATIENCE_S} s")
        time.sleep(0.02)
    return found


def processes() -> list[tuple[int, float, bytes]]:
    """(process, its CPU seconds, its command line) of this program and all that it has started."""
    parents, found = dict[int, int](), dict[int, tuple[float, bytes]]()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            name = (place / "cmdline").read_bytes()
        except OSError:
            continue
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        parents[int(place.name)], found[int(place.name)] = int(fields[1]), (seconds, name)

    def ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [(pid, *found[pid]) for pid in found if ours(pid)]


def spent() -> dict[str, float]:
    """CPU seconds of this process and of those that it has started, the actors' apart."""
    total = {"actor": 0.0, "ray": 0.0}
    for _, seconds, name in processes():
        total["actor" if name.startswith(ACTORS) else "ray"] += seconds
    return total


def costs(scenes: Path, place: Path) -> None:
    from pg_mlx.batch.job import BatchJob, JobFolder
    from pg_mlx.batch.on_ray import run_on_ray
    from pg_mlx.batch.run import answer_shards, load_answerer

    job = BatchJob((str(scenes),), ("caption en",), shard_size=100)
    folder = JobFolder.begin(job, place / "here")
    answerer, taken = load_answerer(job), []
    for number in folder.numbers():
        answer_shards(job, folder, [number], answerer)
        taken.append(time.process_time())
    each = (taken[-1] - taken[0]) / (100 * (len(taken) - 1))
    print(f"here: {each * 1e3:.1f} ms of CPU a picture after the first shard", flush=True)

    folder = JobFolder.begin(job, place / "ray")
    before, began, seen, idle = sum(spent().values()), time.monotonic(), [], 0.0

    def done(number: int, errors: int) -> None:
        nonlocal idle
        seen.append((time.monotonic() - began, spent()))
        if len(seen) == len(folder.shards):
            time.sleep(IDLE_S)
            idle = (spent()["ray"] - seen[-1][1]["ray"]) / IDLE_S

    run_on_ray(job, folder, list(folder.numbers()), None, None, done)
    (start_s, start_of), (end_s, end_of) = seen[0], seen[-1]
    pictures = 100 * (len(seen) - 1)
    print(f"Ray: start-up and the first shard took {start_s:.1f} s, CPU {sum(start_of.values()) - before:.1f} s")
    for name in ("actor", "ray"):
        print(f"  {name}: {(end_of[name] - start_of[name]) / pictures * 1e3:.1f} ms of CPU a picture after that")
    print(f"  {pictures} pictures in {end_s - start_s:.1f} s; without work, Ray uses {idle:.3f} of a core")


if __name__ == "__main__":
    main()
