"""Which shard goes to which actor, and what deaths of actors mean, with a Ray that is made here."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pg_mlx.batch import on_ray
from pg_mlx.errors import PgMlxError


class ActorDied(Exception):
    cause = None


class TaskFailed(Exception):
    pass


class Actor:
    """An actor of the cluster below: what its calls return is an outcome, or an exception to raise."""

    def __init__(self, starts: Callable[[], Any], answers: Callable[[int], Any]):
        self.__ray_ready__ = SimpleNamespace(remote=lambda: Reference(starts()))
        self.answer = SimpleNamespace(remote=lambda number: Reference(answers(number)))


class Reference:
    def __init__(self, outcome: Any):
        self.outcome = outcome


class Cluster:
    """As much of Ray as is used. All calls are done at once, in the order in which they were made."""

    exceptions = SimpleNamespace(RayActorError=ActorDied, RayTaskError=TaskFailed)

    def __init__(self, places: int = 2, starts: Callable[[], Any] = lambda: True, answers: Any = lambda number: 0):
        self.places, self.starts, self.answers = places, starts, answers
        self.living: list[Actor] = []
        self.most, self.done = 0, list[tuple[int, int]]()

    def cluster_resources(self) -> dict[str, float]:
        return {"mlx": self.places}

    def remote(self, *arguments: Any) -> Actor:
        self.living.append(Actor(self.starts, self.answers))
        self.most = max(self.most, len(self.living))
        return self.living[-1]

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert references and num_returns == 1
        return references[:1], references[1:]

    def get(self, reference: Reference) -> Any:
        if isinstance(reference.outcome, Exception):
            raise reference.outcome
        return reference.outcome

    def kill(self, actor: Actor) -> None:
        self.living.remove(actor)

    def run(self, count: int) -> dict[int, str]:
        arguments: Any = (None, "", None)
        return on_ray._hand_out(
            self, self, arguments, list(range(count)), lambda *done: self.done.append(done), lambda: False
        )


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_ray, "_LOOK_S", 0.0)


def test_each_shard_is_answered_once() -> None:
    cluster = Cluster(answers=lambda number: number % 2)
    assert cluster.run(5) == {}
    assert sorted(cluster.done) == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
    assert cluster.most == 2 and cluster.living == []


def test_there_are_no_more_actors_than_shards() -> None:
    cluster = Cluster(places=8)
    assert cluster.run(3) == {} and cluster.most == 3


def test_a_shard_is_set_aside_after_three_deaths_and_the_others_are_done() -> None:
    cluster = Cluster(answers=lambda number: ActorDied("gone") if number == 1 else 0)
    assert cluster.run(4) == {1: "its process died 3 times"}
    assert sorted(cluster.done) == [(0, 0), (2, 0), (3, 0)] and cluster.living == []


def test_a_shard_whose_actor_died_twice_is_done() -> None:
    fates = [ActorDied("gone"), ActorDied("gone"), 0]
    cluster = Cluster(answers=lambda number: fates.pop(0))
    assert cluster.run(1) == {} and cluster.done == [(0, 0)]


def test_actors_that_die_before_they_have_started_cost_no_shard_a_try() -> None:
    fates = [ActorDied("node lost")] * 9
    cluster = Cluster(starts=lambda: fates.pop() if fates else True)
    assert cluster.run(3) == {} and len(cluster.done) == 3


def test_actors_that_never_start_end_the_job() -> None:
    with pytest.raises(PgMlxError, match="10 processes in a row died before they had loaded the model: no memory"):
        Cluster(starts=lambda: ActorDied("no memory")).run(3)


def test_an_error_of_the_model_ends_the_job_at_once() -> None:
    starts: list[int] = []

    def start() -> Exception:
        starts.append(1)
        return ActorDied("in _Actor.__init__()\nInputError: it needs 2 GB")

    with pytest.raises(PgMlxError, match="could not load the model: InputError: it needs 2 GB"):
        Cluster(places=1, starts=start).run(3)
    assert len(starts) == 1


def test_an_error_of_a_shard_leaves_its_actor_at_work() -> None:
    cluster = Cluster(places=1, answers=lambda number: TaskFailed("full disk") if number == 0 else 0)
    assert cluster.run(3) == {0: "full disk"}
    assert [number for number, _ in cluster.done] == [1, 2] and cluster.most == 1


def test_a_cluster_without_places_ends_the_job() -> None:
    with pytest.raises(PgMlxError, match="no node offers the resource mlx any more"):
        Cluster(places=0).run(3)
