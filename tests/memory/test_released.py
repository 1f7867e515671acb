"""What a user drops is free at once. Python's collector counts objects, so a circle may hold gigabytes for long."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.commands import CAT, tiny_checkpoint
from helpers.memory import growth
from helpers.service import CAPTION, service
from helpers.training import fresh, micro
from helpers.training_run import color_data, train

import pg_mlx
from pg_mlx.batch import Predictor
from pg_mlx.demo import CHECKPOINT
from pg_mlx.memory.residency import held_bytes
from pg_mlx.ops import device
from pg_mlx.training.adapting import LowRankOptions, adapt
from pg_mlx.training.step import StepOptions, Trainer


def answers(_: Path) -> None:
    model, processor = pg_mlx.load(CHECKPOINT, dtype="float32")
    pg_mlx.generate(model, processor, "caption en", CAT, max_tokens=3)
    pg_mlx.batch_generate(model, processor, ["caption en", "detect cat"], [CAT, CAT], max_tokens=3)
    next(iter(pg_mlx.stream_generate(model, processor, "caption en", CAT, max_tokens=30)))
    with contextlib.suppress(pg_mlx.InputError):
        pg_mlx.generate(model, processor, "caption en", [])


def many_pictures(_: Path) -> None:
    predictor = Predictor(prompt="caption en", load=dict(dtype="float32"))
    assert predictor({"image": [str(CAT)]})["error"] == [None]


def one_service(_: Path) -> None:
    with service() as running:
        running.ask(CAPTION)
        running.submit(CAPTION, lambda event: None)


def steps(_: Path) -> None:
    for checkpoint in (False, True):
        model = fresh("pg2")
        options = StepOptions(checkpoint=checkpoint, compiled=False)  # 20 s of a C++ compiler would be the other
        trainer = Trainer(model, options, adapt(model, LowRankOptions()))
        trainer.step([micro("pg2", 0)], 0, 1e-3)


def a_training_run(folder: Path) -> None:
    assert train(CHECKPOINT, color_data(folder / "data"), folder / "out") == 0


def a_conversion(folder: Path) -> None:
    folder.mkdir()
    pg_mlx.convert(tiny_checkpoint(folder / "tiny"), folder / "packed", q_bits=4)


ON_BOTH = (answers, many_pictures, one_service, steps)
ON_CPU = (a_training_run, a_conversion)
"""With a GPU's operations they compute in bfloat16, which takes a CPU minutes."""


@pytest.mark.parametrize(
    ("work", "ops"),
    [*((work, ops) for work in ON_BOTH for ops in ("cpu", "gpu")), *((work, "cpu") for work in ON_CPU)],
)
def test_nothing_waits_for_the_collector(work: Callable[[Path], None], ops: str, tmp_path: Path) -> None:
    with device.use(ops):
        work(tmp_path / "first")  # what is made once in a process
        with growth() as grown:
            work(tmp_path / "second")
            device.finish()
            left = grown.now
    smallest = held_bytes(fresh("pg2"))
    assert left < 0.1 * smallest, left


def test_a_circle_would_show() -> None:
    with growth() as grown:
        circle: list[object] = [mx.zeros((1000,))]
        circle.append(circle)
        mx.eval(circle[0])
        del circle
        assert grown.now >= 4000
        gc.collect()
        assert grown.now < 4000
