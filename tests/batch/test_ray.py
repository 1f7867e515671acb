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

from pg_mlx.batch import Predictor, on_ray
from pg_mlx.batch.job import BatchJob, JobFolder
from pg_mlx.errors import InputError, PgMlxError

ray = pytest.importorskip("ray")

COUNT = 200
SHORT = ("--max-tokens", "8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        (folder / f"{number:03}.png").write_bytes(saved(scene((24, 24), number), "PNG"))
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[dict[str, Any]]:
    return generated("--image", folder, *PROMPT, *SHORT)


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
        time.sleep(0.005)
    raise AssertionError("it did not happen")


def actors() -> list[int]:
    """The processes of this test's clusters that answer shards."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = place.read_bytes()
        except OSError:
            continue
        if b"ray::_Actor" in name:
            found.append(int(place.parent.name))
    return found


def whole(job: Path, count: int) -> bool:
    return len(list(job.glob("*.jsonl"))) >= count


def check(job: Path, expected: list[dict[str, Any]]) -> None:
    found = rows(job)
    assert [as_generated(row) for row in found] == expected
    assert left_over(job) == []


def arguments(folder: Path, job: Path, cluster: Any) -> tuple[str | Path, ...]:
    return (folder, *PROMPT, *SHORT, "--to", job, "--shard", "10", "--engine", "ray", "--address", cluster.address)


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


def job_of(folder: Path, **load: Any) -> BatchJob:
    return BatchJob((str(folder),), ("caption en",), load=load, options={"max_tokens": 2}, shard_size=50)


def test_a_shard_that_kills_is_set_aside(folder: Path, cluster: Any, tmp_path: Path, monkeypatch: Any) -> None:
    class Dies(on_ray._Actor):
        def answer(self, number: int) -> int:
            if number == 1:
                os._exit(9)
            return super().answer(number)

    monkeypatch.setattr(on_ray, "_Actor", Dies)
    job, seen = job_of(folder), []
    place = JobFolder.begin(job, tmp_path / "job")
    failed = on_ray.run_on_ray(job, place, [0, 1, 2, 3], cluster.address, None, lambda *done: seen.append(done))
    assert failed == {1: "its process died 3 times"}
    assert sorted(seen) == [(0, 0), (2, 0), (3, 0)]
    assert [place.files.is_whole(number) for number in range(4)] == [True, False, True, True]


def test_a_model_that_does_not_fit_ends_the_job(folder: Path, cluster: Any, tmp_path: Path) -> None:
    job = job_of(folder, max_memory="1MB")
    place = JobFolder.begin(job, tmp_path / "job")
    with pytest.raises(PgMlxError, match="could not load the model") as caught:
        on_ray.run_on_ray(job, place, [0], cluster.address, None, lambda *done: None)
    assert len(str(caught.value).splitlines()) == 1 and "needs" in str(caught.value)


def test_predictor_in_ray_data(folder: Path, expected: list, cluster: Any, tmp_path: Path) -> None:
    data = pytest.importorskip("ray.data")
    ray.init(address=cluster.address, logging_level="ERROR")
    try:
        data.DataContext.get_current().enable_progress_bars = False
        answers = data.read_binary_files(str(folder), include_paths=True, override_num_blocks=8).map_batches(
            Predictor,
            fn_constructor_kwargs={"prompt": "caption en", "max_tokens": 8},
            batch_size=25,
            compute=data.ActorPoolStrategy(size=2),
            num_cpus=0,
            resources={"mlx": 1},
        )
        found = {row["path"]: row["text"] for row in answers.take_all()}
    finally:
        ray.shutdown()
    assert found == {answer["image"]: answer["text"] for answer in expected}


def test_a_cluster_whose_token_is_missing_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = getattr(ray.exceptions, "AuthenticationError", ray.exceptions.RayError)

    def refuse(**options: Any) -> None:
        raise kind("no authentication token was found")

    monkeypatch.setattr(ray, "init", refuse)
    place = JobFolder.begin(job_of(folder), tmp_path / "job")
    with pytest.raises(InputError, match=r"the Ray cluster cannot be reached: .*no authentication token was found"):
        on_ray.run_on_ray(job_of(folder), place, [0], "10.0.0.1:6379", None, lambda *done: None)


def test_a_cluster_without_the_resource_is_refused(folder: Path, tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        done = run(*arguments(folder, tmp_path / "job", cluster))
    finally:
        cluster.shutdown()
    assert done.returncode == 2 and "offers the resource mlx" in done.stderr
