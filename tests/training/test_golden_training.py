"""Losses, gradients and updates of other people's code (transformers, PEFT, torch), reproduced (tests/golden/training).

Run with -rP to see how far off each one is.
"""

from __future__ import annotations

import mlx.core as mx
import pytest
from helpers.models import distance
from helpers.training import (
    FAMILIES,
    TRAINING,
    fresh,
    full_names,
    golden,
    joined,
    kind_of,
    loss_of,
    micro,
    relative,
)

from pg_mlx import PaliGemma
from pg_mlx.training.adapting import LowRankOptions, TrainedAdapter, adapt, train_all
from pg_mlx.training.loss import LossOptions
from pg_mlx.training.optimizer import OptimizerOptions
from pg_mlx.training.step import StepOptions, Trainer

LOSS, ALONG_THE_WAY, GRADIENT, WHOLE_UPDATE, UPDATE, NOTHING = 1e-5, 1e-4, 1e-4, 5e-4, 2e-3, 1e-6
ADAMW = OptimizerOptions(weight_decay=0.01, eps=1e-4, clip=None)
KINDS = {
    "lora_text": LowRankOptions(rank=4, alpha=8),
    "lora_all": LowRankOptions(rank=4, alpha=8, vision=True, projector=True),
    "dora": LowRankOptions(rank=4, alpha=8, dora=True),
    "lora_text_sliding": LowRankOptions(rank=4, alpha=8),
}
LOW_RANK = [(family, kind) for family in FAMILIES for kind in KINDS if family == "pg2" or "sliding" not in kind]
GROUPS = {"acc1": [[0], [1], [2]], "acc2_tokens": [[0, 1], [2, 3], [4, 5]]}
ONLY_LOSSES = {("lora_all", "acc2_tokens"), ("lora_text_sliding", "acc1"), ("lora_text_sliding", "acc2_tokens")}
"""Where the goldens do not have the weights after the updates."""
PARTS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector.weight"}


def peft_names(adapter: TrainedAdapter, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    from pg_mlx.checkpoint.adapters.peft_writer import peft_name

    split = ((name.rpartition("."), array) for name, array in arrays.items())
    return {f"{peft_name(module)}.{PARTS[part]}": array for (module, _, part), array in split}


def started(family: str, kind: str, dtype: str = "float32") -> tuple[PaliGemma, TrainedAdapter]:
    """A model with the adapter of the goldens at its start."""
    model = fresh(family, dtype)
    model.use_sliding_window = kind.endswith("sliding")
    adapter = adapt(model, KINDS[kind])
    start = kind_of(golden(f"{family}_low_rank"), kind, "start")
    assert peft_names(adapter, adapter.tensors()).keys() == start.keys()
    names = dict(zip(peft_names(adapter, adapter.tensors()), adapter.tensors(), strict=True))
    adapter.load({names[name]: array for name, array in start.items()})
    return model, adapter


def gradients_of(trainer: Trainer, family: str, options: LossOptions) -> tuple[float, dict[str, mx.array]]:
    batch = micro(family, 0)
    loss, gradients = trainer.gradients(batch)
    count = batch.suffix_tokens if options.mean == "token" else batch.rows
    return loss.item() / count, {name: array / count for name, array in gradients.items()}


def by_module(adapter: TrainedAdapter, gradients: dict[str, mx.array]) -> dict[str, mx.array]:
    """Arrays by path in the model, by canonical name."""
    names = adapter.paths()
    return {names[path]: array for path, array in gradients.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mean", ["token", "example"])
@pytest.mark.parametrize("smoothing", [0, 0.1])
@pytest.mark.parametrize("capped", [True, False])
def test_losses(family: str, mean: str, smoothing: float, capped: bool) -> None:
    options = LossOptions(mean, smoothing, capped, piece=7)
    model = fresh(family)
    train_all(model)
    trainer = Trainer(model, StepOptions(loss=options))
    wanted = loss_of(
        family, f"loss.{mean}_mean" + "_smoothed" * bool(smoothing) + "_uncapped" * (not capped and family == "pg2")
    )
    total, count = trainer.loss(micro(family, 0))
    traced, _ = gradients_of(trainer, family, options)
    print(f"off by {abs(total / count - wanted[0]):.1e}, traced by {abs(traced - wanted[0]):.1e}")
    assert abs(total / count - wanted[0]) <= LOSS
    assert abs(traced - wanted[0]) <= LOSS


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_all_weights(family: str) -> None:
    model = fresh(family)
    train_all(model)
    _, gradients = gradients_of(Trainer(model), family, LossOptions())
    found, wanted = full_names(model, gradients), dict(golden(f"{family}_full_gradients"))
    nothing = [name for name in wanted if "vision_tower" in name and name.endswith("k_proj.bias")]
    assert nothing
    for name in nothing:
        assert distance(found.pop(name), mx.zeros(wanted.pop(name).shape)) < NOTHING
    whole, worst, name = relative(found, wanted)
    print(f"{whole:.1e} whole, {worst:.1e} worst, {name}")
    assert worst <= GRADIENT


@pytest.mark.parametrize(("family", "kind"), LOW_RANK)
def test_gradients_of_adapters(family: str, kind: str) -> None:
    model, adapter = started(family, kind)
    loss, gradients = gradients_of(Trainer(model, StepOptions(), adapter), family, LossOptions())
    wanted = kind_of(golden(f"{family}_low_rank"), kind, "gradient")
    whole, worst, name = relative(peft_names(adapter, by_module(adapter, gradients)), wanted)
    off = abs(loss - loss_of(family, f"loss.{kind}")[0])
    print(f"{whole:.1e} whole, {worst:.1e} worst, {name}; loss off by {off:.1e}")
    assert worst <= GRADIENT
    assert off <= LOSS


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_example_mean(family: str) -> None:
    model, adapter = started(family, "lora_text")
    options = LossOptions("example")
    _, gradients = gradients_of(Trainer(model, StepOptions(loss=options), adapter), family, options)
    wanted = kind_of(golden(f"{family}_low_rank"), "lora_text", "gradient_example_mean")
    assert relative(peft_names(adapter, by_module(adapter, gradients)), wanted)[1] <= GRADIENT


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize(("family", "kind"), LOW_RANK)
def test_updates_of_adapters(family: str, kind: str, groups: str) -> None:
    model, adapter = started(family, kind)
    before = peft_names(adapter, adapter.tensors())
    trainer = Trainer(model, StepOptions(optimizer=ADAMW), adapter)
    losses = []
    for number, members in enumerate(GROUPS[groups]):
        losses.append(trainer.step([micro(family, one) for one in members], number, 1e-3).loss)
    total, count = trainer.loss(micro(family, 0))
    after = peft_names(adapter, adapter.tensors())
    wanted_losses = loss_of(family, f"losses.{kind}.{groups}")
    off = max(abs(ours - theirs) for ours, theirs in zip([*losses, total / count], wanted_losses, strict=True))
    print(f"losses off by {off:.1e}")
    assert off <= ALONG_THE_WAY
    wanted = kind_of(golden(f"{family}_low_rank"), kind, f"after_{groups}")
    if (kind, groups) in ONLY_LOSSES:
        assert not wanted
        return
    changes = ({name: one[name] - array for name, array in before.items()} for one in (after, wanted))
    whole, worst, name = relative(*changes)
    print(f"{whole:.1e} whole, {worst:.1e} worst, {name}")
    assert whole <= WHOLE_UPDATE
    assert worst <= UPDATE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", GROUPS)
def test_updates_of_all_weights(family: str, groups: str) -> None:
    model = fresh(family)
    train_all(model)
    trainer = Trainer(model, StepOptions(optimizer=ADAMW))
    before, losses = trainer.weights, []
    for number, members in enumerate(GROUPS[groups]):
        losses.append(trainer.step([micro(family, one) for one in members], number, 1e-3).loss)
    total, count = trainer.loss(micro(family, 0))
    changes = full_names(model, {name: trainer.weights[name] - array for name, array in before.items()})
    wanted = golden(f"{family}_full_updates_{groups.removesuffix('_tokens')}")
    wanted = {name.removeprefix("tokens/"): array for name, array in wanted.items() if not name.endswith("k_proj.bias")}
    whole, worst, name = relative({name: changes[name] for name in wanted}, wanted)
    off = max(
        abs(ours - theirs)
        for ours, theirs in zip([*losses, total / count], loss_of(family, f"losses.full.{groups}"), strict=True)
    )
    print(f"{whole:.1e} whole, {worst:.1e} worst, {name}; losses off by {off:.1e}")
    assert whole <= WHOLE_UPDATE
    assert worst <= UPDATE
    assert off <= ALONG_THE_WAY


@pytest.mark.parametrize(("family", "torch"), [("pg1", 0.210), ("pg2", 0.031)])
def test_bfloat16_is_as_close_to_float32_as_torch_is(family: str, torch: float) -> None:
    """torch: the distance of PEFT's gradients in bfloat16 from those in float32."""
    model, adapter = started(family, "lora_text", "bfloat16")
    _, gradients = gradients_of(Trainer(model, StepOptions(), adapter), family, LossOptions())
    assert {array.dtype for array in gradients.values()} == {mx.float32}
    wanted = kind_of(golden(f"{family}_low_rank"), "lora_text", "gradient")
    whole, _, _ = relative(peft_names(adapter, by_module(adapter, gradients)), wanted)
    print(f"{whole:.3f}, torch {torch}")
    assert whole <= 1.25 * torch


def test_joined_batches_are_the_same_rows() -> None:
    """What two micro-batches together are compared with elsewhere."""
    assert (
        joined(micro("pg1", 0), micro("pg1", 1)).suffix_tokens
        == micro("pg1", 0).suffix_tokens + micro("pg1", 1).suffix_tokens
    )
    assert (TRAINING / "README.md").is_file()
