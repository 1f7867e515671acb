"""The shards of a job on a Ray cluster: one actor for each unit of the resource `mlx` that its nodes offer."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import InputError, PgMlxError
from .job import BatchJob, JobFolder

RESOURCE = "mlx"
"""Nodes offer it: `ray start --resources='{"mlx": 1}'`. Actors ask for it and for no CPU, so that they never wait for
CPUs that other tasks of the cluster hold, and no machine has more models in memory than its owner has allowed."""

_TRIES = 3
"""Deaths of an actor on one shard; then the shard is set aside."""
_STARTS = 10
"""Deaths of actors in a row before they have loaded the model; then the job ends."""
_LOOK_S = 1.0
"""How often the cluster is asked for new nodes, and the pause after an actor that has not started."""


class _Actor:
    """What an actor does: it loads the model once, and answers one shard a call."""

    def __init__(self, job: BatchJob, folder: str, batch_size: int | None):
        from .run import load_answerer

        # The job is described again here, so a node that sees other pictures or another checkpoint is refused.
        self._job, self._place = job, JobFolder.begin(job, Path(folder))
        self._answerer = load_answerer(job, batch_size)

    def answer(self, number: int) -> int:
        """Write a shard. Returns how many of its rows have errors."""
        from .run import answer_shards

        answer_shards(self._job, self._place, [number], self._answerer)
        return self._place.files.count_errors(number)


def run_on_ray(
    job: BatchJob,
    place: JobFolder,
    numbers: list[int],
    address: str | None,
    batch_size: int | None,
    done: Callable[[int, int], None],
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[int, str]:
    """Answer shards on a cluster; returns those that could not be answered, with the reason.

    address: the cluster's; None for one that RAY_ADDRESS names, or else for this machine alone. Its nodes see the
    sources and the job's folder under the same paths. done: called with a shard and its number of errors.
    If an actor dies, alone or with its node, its shard is given to another one. Nodes that join get actors.
    Raises InputError if Ray is not installed, cannot be reached, or no node offers RESOURCE, and PgMlxError if actors
    cannot load the model or no node is left.
    """
    ray = _connected(address)
    try:
        if not int(ray.cluster_resources().get(RESOURCE, 0)):
            raise InputError(
                "no node of the Ray cluster offers the resource mlx: ray start ... --resources='{\"mlx\": 1}'"
            )
        # replace() leaves out the listings, which are opened again where they are read.
        # Ray itself repeats nothing: a node that is lost could use up all tries of a shard before Ray knows of it.
        remote = ray.remote(num_cpus=0, resources={RESOURCE: 1}, max_restarts=0, max_task_retries=0)(_Actor)
        return _hand_out(ray, remote, (replace(job), str(place.folder), batch_size), numbers, done, cancelled)
    finally:
        ray.shutdown()


def _hand_out(
    ray: Any,
    remote: Any,
    arguments: tuple[BatchJob, str, int | None],
    numbers: list[int],
    done: Callable[[int, int], None],
    cancelled: Callable[[], bool],
) -> dict[int, str]:
    """One shard at a time to each actor that has loaded the model, so that no shard waits for an actor's start.
    An actor without work is ended at once: on a cluster that has lost a node, another one may be waiting for its place.
    """
    waiting, failed, deaths, lost = list(reversed(numbers)), dict[int, str](), Counter[int](), 0
    starting, running = dict[Any, Any](), dict[Any, tuple[Any, int]]()
    while (waiting or running) and not cancelled():
        places = int(ray.cluster_resources().get(RESOURCE, 0))
        if not running and not places:
            raise PgMlxError("no node offers the resource mlx any more; the same line goes on when one does")
        while len(starting) < min(places - len(running), len(waiting)):
            actor = remote.remote(*arguments)
            starting[actor.__ray_ready__.remote()] = actor
        for reference in ray.wait([*starting, *running], num_returns=1, timeout=_LOOK_S)[0]:
            actor, number = running.pop(reference, None) or (starting.pop(reference), None)
            try:
                errors = ray.get(reference)
                lost = 0
                if number is not None:
                    done(number, errors)
            except ray.exceptions.RayActorError as error:
                ray.kill(actor)  # it may only be out of reach
                if number is None:
                    lost += 1
                    _check_start(error, lost)
                    time.sleep(_LOOK_S)
                    continue
                deaths[number] += 1
                if deaths[number] < _TRIES:
                    waiting.append(number)
                else:
                    failed[number] = f"its process died {_TRIES} times"
                continue
            except ray.exceptions.RayTaskError as error:
                assert number is not None
                failed[number] = _last_line(error)
            if waiting:
                number = waiting.pop()
                running[actor.answer.remote(number)] = actor, number
            else:
                ray.kill(actor)
    return failed


def _check_start(error: Any, lost: int) -> None:
    """Raises PgMlxError if there is no use in starting another actor."""
    if getattr(error, "cause", None) is not None or "__init__" in str(error):
        raise PgMlxError(f"an actor could not load the model: {_last_line(error)}") from None
    if lost >= _STARTS:
        raise PgMlxError(f"{lost} processes in a row died before they had loaded the model: {_last_line(error)}")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


def _connected(address: str | None) -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray: pip install 'pg_mlx[ray]'") from None
    local: dict[str, Any] = {}
    if not address and not os.environ.get("RAY_ADDRESS"):
        address, local = "local", {"resources": {RESOURCE: 1}, "include_dashboard": False}
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False, **local)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise InputError(f"the Ray cluster cannot be reached: {_last_line(error)}") from None
    return ray
