"""Schedules, optimizers, batches and estimates."""

from __future__ import annotations

import math
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from helpers.memory import growth
from helpers.models import one_line_error
from helpers.training import fresh, micro
from hypothesis import given
from hypothesis import strategies as st

from pg_mlx import load_model
from pg_mlx.demo import CHECKPOINT
from pg_mlx.memory.residency import held_bytes
from pg_mlx.ops import device
from pg_mlx.training.adapting import LowRankOptions, adapt, count_learnt
from pg_mlx.training.batch import TrainingBatch
from pg_mlx.training.loss import PIECE_VALUES, LossOptions
from pg_mlx.training.needs import Shape, training_needs
from pg_mlx.training.optimizer import Optimizer, OptimizerOptions
from pg_mlx.training.schedule import Schedule
from pg_mlx.training.step import StepOptions, Trainer

# --- the learning rate ---------------------------------------------------------------------------------


@given(st.integers(1, 300), st.sampled_from(["cosine", "linear", "constant"]), st.floats(0, 1, exclude_max=True))
def test_a_schedule_goes_up_and_then_never_up_again(steps: int, shape: str, warmup: float) -> None:
    schedule = Schedule(1e-3, steps, shape, warmup)  # type: ignore[arg-type]
    rates = [schedule(step) for step in range(steps)]
    up = schedule.warmup_steps
    assert all(0 < rate <= 1e-3 for rate in rates)
    assert rates[:up] == sorted(rates[:up]) and rates[up:] == sorted(rates[up:], reverse=True)
    assert up == steps or rates[up] == 1e-3


def test_schedules_by_hand() -> None:
    assert Schedule(1.0, 100, "cosine", 0)(50) == pytest.approx(0.5)
    assert Schedule(1.0, 100, "cosine", 0)(25) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert Schedule(1.0, 100, "linear", 20)(60) == pytest.approx(0.5)
    assert [Schedule(1.0, 100, "constant", 3)(step) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1])
    for wrong in (dict(learning_rate=0), dict(steps=0), dict(shape="square"), dict(warmup=101), dict(warmup=-1)):
        with one_line_error(str(next(iter(wrong.values())))):
            Schedule(**{"learning_rate": 1.0, "steps": 100, **wrong})  # type: ignore[arg-type]


# --- optimizers ----------------------------------------------------------------------------------------


def test_the_first_step_of_adam_is_the_learning_rate() -> None:
    """Its bias is corrected; without that it would be three times as long."""
    weights = {"matrix": mx.ones((2, 2)), "norm": mx.ones((2,))}
    gradients = {"matrix": mx.full((2, 2), 3.0), "norm": mx.full((2,), -4.0)}
    options = OptimizerOptions(weight_decay=0.5, clip=None)
    after, norm = Optimizer(options).update(weights, gradients, 0.1)
    assert np.allclose(np.array(after["matrix"]), 1 * (1 - 0.1 * 0.5) - 0.1, atol=1e-6)
    assert np.allclose(np.array(after["norm"]), 1 + 0.1, atol=1e-6)  # not decayed
    assert norm.item() == pytest.approx(math.sqrt(4 * 9 + 2 * 16))


def test_gradients_are_clipped_together() -> None:
    weights = {"a": mx.zeros((1,)), "b": mx.zeros((1,))}
    gradients = {"a": mx.array([30.0]), "b": mx.array([40.0])}
    after, norm = Optimizer(OptimizerOptions("sgd", clip=1.0)).update(weights, gradients, 1.0)
    assert norm.item() == pytest.approx(50)
    assert [after[name].item() for name in "ab"] == pytest.approx([-0.6, -0.8], rel=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_every_optimizer_learns_and_goes_on(name: str) -> None:
    def begun() -> Trainer:
        model = fresh("pg1")
        options = StepOptions(optimizer=OptimizerOptions(name, momentum=0.5))  # type: ignore[arg-type]
        return Trainer(model, options, adapt(model, LowRankOptions(rank=4)))

    rate = {"adamw": 1e-2, "sgd": 0.5, "adafactor": 1e-2}[name]
    first = begun()
    losses = [first.step([micro("pg1", 0)], number, rate).loss for number in range(6)]
    assert losses[-1] < losses[0] - 0.02
    second = begun()
    for number in range(3):
        second.step([micro("pg1", 0)], number, rate)
    third = begun()
    third.restore(second.state())
    assert [third.step([micro("pg1", 0)], number, rate).loss for number in range(3, 6)] == losses[3:]


def test_impossible_options_are_refused() -> None:
    for wrong in (dict(name="muon"), dict(weight_decay=-1), dict(eps=0), dict(momentum=1), dict(clip=0)):
        with one_line_error(str(next(iter(wrong.values())))):
            OptimizerOptions(**wrong)  # type: ignore[arg-type]
    for wrong in (dict(mean="median"), dict(label_smoothing=1), dict(piece=0)):
        with one_line_error(str(next(iter(wrong.values())))):
            LossOptions(**wrong)  # type: ignore[arg-type]


def test_a_state_of_something_else_is_refused() -> None:
    model = fresh("pg1")
    trainer = Trainer(model, adapter=adapt(model, LowRankOptions(rank=4)))
    other = fresh("pg1")
    state = Trainer(other, adapter=adapt(other, LowRankOptions(rank=3))).state()
    with one_line_error("state"):
        trainer.restore(state)
    with one_line_error("row"):
        trainer.step([], 0, 1e-3)


# --- batches -------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_refused() -> None:
    batch = micro("pg1", 0)
    for wrong, word in (
        (dict(pixels=None), "pixels"),
        (dict(image_index=[0, 1, 9]), "image_index"),
        (dict(image_index=[0, 1]), "prefix"),
        (dict(suffix_lengths=np.array([0, 1, 1])), "suffix"),
        (dict(prefix_lengths=np.array([1, 1, 99])), "prefix"),
    ):
        with one_line_error(word):
            replace(batch, **wrong)  # type: ignore[arg-type]
    assert isinstance(batch.select([2, 0]), TrainingBatch)
    assert batch.select([2]).pixels.shape[0] == 1  # type: ignore[union-attr]


def test_the_head_takes_as_many_tokens_as_its_table_allows() -> None:
    for ops in ("cpu", "gpu"):
        with device.use(ops):
            assert LossOptions().tokens_at_once(257216) == PIECE_VALUES[ops] // 257216 >= 16
            assert LossOptions(piece=3).tokens_at_once(257216) == 3
            assert LossOptions().tokens_at_once(1 << 30) == 1


# --- memory --------------------------------------------------------------------------------------------


@pytest.mark.ops("cpu", reason="the estimate was measured with them")
@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "checkpoint"])
def test_the_estimate_is_near_the_peak(checkpoint: bool) -> None:
    model = load_model(CHECKPOINT, dtype="float32")
    weights, options = held_bytes(model), LowRankOptions()
    trainer = Trainer(model, StepOptions(checkpoint=checkpoint), adapt(model, options))
    random, rows = np.random.default_rng(0), 2
    ids = random.integers(3, 1000, (rows, 35)).astype(np.int32)
    features = mx.zeros((rows, model.config.vision.num_patches, model.config.text.hidden_size))
    lengths = np.full(rows, 14, np.int32), np.full(rows, 35, np.int32)
    batch = TrainingBatch(None, features, [0, 1], ids[:, :14], lengths[0], ids, lengths[1])
    held = held_bytes(model)
    with growth() as grown:
        for number in range(2):
            trainer.step([batch], number, 1e-4)
    shape = Shape(rows, 64 + 48, rows * 35)
    needs = training_needs(
        model.config, shape, weights=weights, learnt=count_learnt(model.config, options), checkpoint=checkpoint
    )
    ratio = needs.total / (held + grown.peak)
    assert 0.85 <= ratio <= 1.3, ratio
