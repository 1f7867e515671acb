"""What must not change a step of training, and what must not happen in one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from helpers.models import model_of, quantized, random_tensors, wide_config_json
from helpers.training import fresh, joined, micro, relative

from pg_mlx import PaliGemma
from pg_mlx.ops import device
from pg_mlx.training.adapting import LowRankOptions, adapt, train_all
from pg_mlx.training.batch import TrainingBatch
from pg_mlx.training.loss import LossOptions
from pg_mlx.training.optimizer import OptimizerOptions
from pg_mlx.training.step import MicroBatch, StepOptions, Trainer

TOLERANCE = 1e-5
DROPOUT = LowRankOptions(rank=4, dropout=0.3, vision=True, projector=True)
PLAIN = replace(DROPOUT, dropout=0.0)


def alive(model: PaliGemma, low_rank: LowRankOptions = PLAIN, **options: object) -> Trainer:
    """A trainer of an adapter whose B is not zero, so that all of its gradients are alive."""
    adapter = adapt(model, low_rank)
    random = np.random.default_rng(5)
    adapter.load(
        {
            name: array + random.normal(0, 0.1, array.shape).astype(np.float32)
            for name, array in adapter.tensors().items()
        }
    )
    return Trainer(model, StepOptions(**options), adapter)  # type: ignore[arg-type]


def summed(trainer: Trainer, *batches: tuple[TrainingBatch, list[int]]) -> dict[str, mx.array]:
    total: dict[str, mx.array] = {}
    for batch, rows in batches:
        _, gradients = trainer.gradients(batch, 3, rows)
        total = {name: total.get(name, mx.array(0.0)) + array for name, array in gradients.items()}
    return total


def apart(first: dict[str, mx.array], second: dict[str, mx.array]) -> float:
    return relative(first, second)[0]


def text_batch(model: PaliGemma, seed: int = 0) -> TrainingBatch:
    """Rows of several lengths for any small model."""
    random = np.random.default_rng(seed)
    side = model.config.vision.image_size
    prefix, suffix = np.array([5, 3, 7, 4]), np.array([6, 1, 2, 9])
    return TrainingBatch(
        mx.array(random.uniform(-1, 1, (2, side, side, 3)).astype(np.float32)),
        None,
        [0, 1, 1, 0],
        random.integers(3, 90, (4, 7)).astype(np.int32),
        prefix.astype(np.int32),
        random.integers(3, 90, (4, 9)).astype(np.int32),
        suffix.astype(np.int32),
    )


# --- sums ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low_rank", [PLAIN, LowRankOptions(rank=4, dropout=0.3)], ids=["all", "decoder, dropout"])
@pytest.mark.parametrize("mean", ["token", "example"])
def test_rows_alone_are_one_batch(low_rank: LowRankOptions, mean: str) -> None:
    trainer = alive(fresh("pg2"), low_rank, loss=LossOptions(mean))  # type: ignore[arg-type]
    first, second = micro("pg2", 0), micro("pg2", 1)
    together = summed(trainer, (joined(first, second), [0, 1, 2, 3, 4, 5]))
    rows = [(batch.select([row]), [start + row]) for batch, start in ((first, 0), (second, 3)) for row in range(3)]
    assert apart(summed(trainer, *rows), together) <= TOLERANCE


def test_a_step_of_micro_batches_is_a_step_of_all_rows() -> None:
    batches = [micro("pg1", 0), micro("pg1", 1)]
    one, several = alive(fresh("pg1")), alive(fresh("pg1"))
    whole = one.step([joined(*batches)], 0, 1e-3)
    parts = several.step(batches, 0, 1e-3)
    assert whole.count == parts.count == sum(batch.suffix_tokens for batch in batches)
    assert abs(whole.loss - parts.loss) <= TOLERANCE
    assert abs(whole.gradient_norm / parts.gradient_norm - 1) <= TOLERANCE


def test_order_of_rows_and_padding_change_nothing() -> None:
    trainer = alive(fresh("pg2"))
    batch = micro("pg2", 0)
    wanted = summed(trainer, (batch, [0, 1, 2]))
    assert apart(summed(trainer, (batch.select([2, 0, 1]), [2, 0, 1])), wanted) <= TOLERANCE
    pad = [(0, 0), (0, 5)]
    padded = replace(
        batch,
        prefix_ids=np.pad(batch.prefix_ids, pad, constant_values=7),
        suffix_ids=np.pad(batch.suffix_ids, pad, constant_values=9),
    )
    assert apart(summed(trainer, (padded, [0, 1, 2])), wanted) <= TOLERANCE


def test_lengths_padded_for_a_compiled_step_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = summed(alive(fresh("pg2")), (micro("pg2", 0), [0, 1, 2]))
    monkeypatch.setattr(mx, "compile", lambda function, **_: function)
    found = summed(alive(fresh("pg2"), compiled=True), (micro("pg2", 0), [0, 1, 2]))
    assert apart(found, wanted) <= TOLERANCE


def test_cached_features_are_pixels() -> None:
    model = fresh("pg2")
    trainer = alive(model, LowRankOptions(rank=4))
    batch = micro("pg2", 0)
    assert batch.pixels is not None
    cached = replace(batch, pixels=None, features=model.encode_image(batch.pixels))
    assert apart(summed(trainer, (cached, [0, 1, 2])), summed(trainer, (batch, [0, 1, 2]))) <= TOLERANCE


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
@pytest.mark.parametrize("unpack", [1, 10**9], ids=["unpacked", "packed products"])
@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "checkpoint"])
def test_packed_weights_are_their_floats(
    unpack: int, dora: bool, checkpoint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = wide_config_json("gemma2")
    packed_json, packed, floats = quantized(raw, random_tensors(raw), lambda _, tensor: tensor.shape[1] % 64 == 0)
    monkeypatch.setattr("pg_mlx.ops.products.wanted_unpack_rows", lambda: unpack)
    options = LowRankOptions(rank=4, dora=dora)
    ours, theirs = model_of(packed_json, packed), model_of(raw, floats)
    batch = text_batch(ours)
    found, wanted = (
        summed(alive(model, options, checkpoint=checkpoint), (batch, [0, 1, 2, 3])) for model in (ours, theirs)
    )
    assert apart(found, wanted) <= TOLERANCE


# --- memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low_rank", [PLAIN, DROPOUT, replace(PLAIN, dora=True), None], ids=["LoRA", "dropout", "DoRA", "full"]
)
def test_checkpointing_changes_no_bit(low_rank: LowRankOptions | None) -> None:
    found = []
    for checkpoint in (False, True):
        model = fresh("pg2")
        if low_rank is None:
            train_all(model)
            trainer = Trainer(model, StepOptions(checkpoint=checkpoint))
        else:
            trainer = alive(model, low_rank, checkpoint=checkpoint)
        found.append(summed(trainer, (micro("pg2", 0), [0, 1, 2])))
    assert all(mx.array_equal(array, found[1][name]).item() for name, array in found[0].items())


@pytest.mark.parametrize("ops", ["cpu", "gpu"])
def test_nothing_is_evaluated_while_gradients_are_traced(ops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is evaluated in a trace stays in memory until its end: at 3B widths 1,541 MB where it was 398."""
    raw = wide_config_json("gemma2")
    packed_json, packed, _ = quantized(raw, random_tensors(raw), lambda _, tensor: tensor.shape[1] % 64 == 0)
    models = [model_of(packed_json, packed), model_of(raw, random_tensors(raw))]
    for name, small in (("blocks.VALUES", 64), ("via_numpy.LARGE_VALUES", 1), ("products.LARGE_WEIGHT", 1)):
        monkeypatch.setattr(f"pg_mlx.ops.{name}", small)
    for module in ("attention", "gelu"):
        monkeypatch.setattr(f"pg_mlx.ops.{module}.LARGE_VALUES", 1)
    calls: list[str] = []

    def noting(name: str) -> Callable[..., object]:
        original = getattr(mx, name)

        def call(*arguments: object, **options: object) -> object:
            if device.traces_gradients():
                calls.append(name)
            return original(*arguments, **options)

        return call

    with device.use(ops):
        trainers = [alive(model, replace(PLAIN, dora=True), checkpoint=True) for model in models]
        for name in ("eval", "async_eval"):
            monkeypatch.setattr(mx, name, noting(name))
        for trainer in trainers:
            mx.eval(trainer.gradients(text_batch(trainer.model))[1])
        assert calls == []
        with device.gradients():
            mx.eval(mx.array(1.0))
        assert calls == ["eval"]  # so it would be seen


# --- numbers -------------------------------------------------------------------------------------------


def test_a_model_in_bfloat16_learns_in_float32() -> None:
    narrow = alive(fresh("pg2", "bfloat16"))
    assert all(array.dtype == mx.float32 for array in narrow.weights.values())
    before = narrow.weights
    narrow.step([micro("pg2", 0)], 0, 1e-6)
    assert all(not mx.array_equal(array, narrow.weights[name]).item() for name, array in before.items())


def test_resuming_is_going_on(tmp_path: object) -> None:
    def begun() -> Trainer:
        return alive(fresh("pg2"), DROPOUT, optimizer=OptimizerOptions(weight_decay=0.1))

    whole, first, second = begun(), begun(), begun()
    for number in range(4):
        whole.step([micro("pg2", number)], number, 1e-3)
    for number in range(2):
        first.step([micro("pg2", number)], number, 1e-3)
    mx.save_safetensors(f"{tmp_path}/state.safetensors", first.state())
    second.restore(mx.load(f"{tmp_path}/state.safetensors"))
    for number in range(2, 4):
        second.step([micro("pg2", number)], number, 1e-3)
    assert all(mx.array_equal(array, second.weights[name]).item() for name, array in whole.weights.items())
    assert all(mx.array_equal(array, second.state()[name]).item() for name, array in whole.state().items())


def test_rows_may_have_numbers_of_their_own() -> None:
    """As in one of several processes, which has the later rows of a step."""
    trainer = alive(fresh("pg2"), LowRankOptions(rank=4, dropout=0.3))
    batch = micro("pg2", 0)
    whole = summed(trainer, (batch, [0, 1, 2]))
    parts = summed(trainer, (batch.select([0]), [0]), (batch.select([1, 2]), [1, 2]))
    assert apart(parts, whole) <= TOLERANCE
    assert apart(summed(trainer, (batch, [0, 1, 3])), whole) > 0.01
    assert MicroBatch(batch, (4, 5, 6)).rows == (4, 5, 6)
