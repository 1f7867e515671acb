"""Jobs on a Ray cluster: deaths of actors, nodes and drivers lose no row and double none. Skipped without Ray."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.batches import PROMPT, as_generated, generated, left_over, rows, run, start
from helpers.pictures import saved
from helpers.regions import scene

ray = pytest.importorskip("ray")

COUNT = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        (folder / f"{number:03}.png").write_bytes(saved(scene((24, 24), number), "PNG"))
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, Any]]:
    return generated("--image", folder, *PROMPT)


NODE = {"num_cpus": 1, "resources": {"mlx": 1}, "object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, each with room for one model."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def actors() -> list[int]:
    """The processes of this test's clusters that answer shards."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = place.read_bytes()
        except OSError:
            continue
        if b"ray::_Worker" in name:
            found.append(int(place.parent.name))
    return found


def whole(job: Path, count: int) -> bool:
    return len(list(job.glob("*.jsonl"))) >= count


def check(job: Path, expected: list[dict[str, Any]]) -> None:
    found = rows(job)
    assert [as_generated(row) for row in found] == expected
    assert left_over(job) == []


def arguments(folder: Path, job: Path, cluster: Any) -> tuple[str | Path, ...]:
    return (folder, *PROMPT, "--to", job, "--shard", "10", "--engine", "ray", "--address", cluster.address)


def test_an_actor_that_dies_is_replaced(folder: Path, expected: list, cluster: Any, tmp_path: Path) -> None:
    process = start(*arguments(folder, tmp_path / "job", cluster))
    wait_for(lambda: whole(tmp_path / "job", 1))
    os.kill(actors()[0], signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    check(tmp_path / "job", expected)


def test_a_node_that_dies_is_done_without(folder: Path, expected: list, cluster: Any, tmp_path: Path) -> None:
    process = start(*arguments(folder, tmp_path / "job", cluster))
    wait_for(lambda: whole(tmp_path / "job", 2))
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    _, error = process.communicate(timeout=300)
    cluster.add_node(**NODE)
    assert process.returncode == 0, error
    check(tmp_path / "job", expected)


def test_a_driver_that_dies_goes_on_where_it_ended(folder: Path, expected: list, cluster: Any, tmp_path: Path) -> None:
    process = start(*arguments(folder, tmp_path / "job", cluster))
    wait_for(lambda: whole(tmp_path / "job", 3))
    process.kill()
    process.communicate()
    assert run("--status", tmp_path / "job").returncode == 1
    done = run(*arguments(folder, tmp_path / "job", cluster))
    assert done.returncode == 0, done.stderr
    assert "rows were there before" in done.stderr
    check(tmp_path / "job", expected)


def test_a_cluster_without_the_resource_is_refused(folder: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        done = run(*arguments(folder, tmp_path / "job", cluster))
    finally:
        cluster.shutdown()
    assert done.returncode == 2 and "offers the resource mlx" in done.stderr
