"""Adapters that learn: where they are put, what they compute in generation, and the folders they leave."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.adapters import EMBEDDING, Q, Trained, wide
from helpers.models import (
    distance,
    greedy,
    load_packed,
    model_of,
    one_line_error,
    pictures,
    quantized,
    random_ids,
    same,
    text_logits,
    write_folder,
)
from helpers.training import FAMILIES, TRAINING, fresh, micro

import pg_mlx
from pg_mlx import PaliGemma, load_model
from pg_mlx.checkpoint.adapters.peft_writer import target_pattern, write_peft
from pg_mlx.checkpoint.disassemble import stored_weights
from pg_mlx.checkpoint.load import build
from pg_mlx.demo import CHECKPOINT
from pg_mlx.linear import Linear, Parallel
from pg_mlx.training.adapting import LowRankOptions, TrainedAdapter, adapt, count_learnt, train_all
from pg_mlx.training.low_rank import LowRank
from pg_mlx.training.step import Trainer

TOLERANCE = 1e-4
EVERYTHING = LowRankOptions(rank=4, alpha=6, vision=True, projector=True)


def randomised(adapter: TrainedAdapter, seed: int = 0) -> TrainedAdapter:
    random = np.random.default_rng(seed)
    noise = {name: random.normal(0, 0.1, array.shape).astype(np.float32) for name, array in adapter.tensors().items()}
    adapter.load({name: array + noise[name] for name, array in adapter.tensors().items()})
    return adapter


def save(adapter: TrainedAdapter, folder: Path) -> Path:
    folder.mkdir()
    write_peft(folder, adapter.tensors(), adapter.scales(), base="base")
    return folder


# --- beside the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_at_the_start_nothing_changes(dora: bool) -> None:
    model = fresh("pg2")
    before = text_logits(model)
    adapt(model, replace(EVERYTHING, dora=dora))
    assert distance(text_logits(model), before) <= 1e-5


def test_removal_gives_the_model_back() -> None:
    model = fresh("pg1")
    before = text_logits(model)
    adapter = randomised(adapt(model, EVERYTHING))
    assert distance(text_logits(model), before) > 0.01
    adapter.remove()
    assert same(text_logits(model), before)
    assert not [module for module in model.modules() if isinstance(module, LowRank)]


@pytest.mark.parametrize("ops", ["cpu", "gpu"])
@pytest.mark.parametrize("packing", ["float", "packed", "packed apart"])
@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_in_place_it_computes_what_a_fresh_load_does(packing: str, dora: bool, ops: str, tmp_path: Path) -> None:
    """Prefill, decoding through the cache and logits; on packed bases, also where parts of a layer are packed apart."""
    raw, tensors = wide()
    if packing != "float":
        raw, tensors, _ = quantized(
            raw,
            tensors,
            lambda module, tensor: tensor.shape[1] % 64 == 0 and (packing == "packed" or "k_proj" not in module),
        )
    base = write_folder(tmp_path / "base", raw, tensors)
    model = load_packed(base, dtype="float32")
    assert isinstance(model.language_model.layers[0].self_attn.qkv_proj, Parallel) == (packing == "packed apart")
    options = replace(
        EVERYTHING, dora=dora, target_modules=("q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "fc1", "fc2")
    )
    adapter = randomised(adapt(model, options))
    loaded = load_packed(base, dtype="float32", adapter_path=save(adapter, tmp_path / "adapter"))
    features = pictures(model, 2)
    assert distance(features, pictures(loaded, 2)) <= TOLERANCE
    ids = random_ids(2, 5)
    for ours, theirs in zip(greedy(model, features, ids, 4), greedy(loaded, features, ids, 4), strict=True):
        assert distance(ours, theirs) <= TOLERANCE
    assert distance(model.logits(features, ids), loaded.logits(features, ids)) <= TOLERANCE


def test_answers_with_the_adapter_in_place_are_those_of_a_fresh_load(tmp_path: Path) -> None:
    model, processor = pg_mlx.load(CHECKPOINT, dtype="float32")
    adapter = randomised(adapt(model, LowRankOptions(rank=2, alpha=0.5)))
    images = [np.full((60, 80, 3), shade, np.uint8) for shade in (30, 200)]
    prompts = ["caption en", "detect red circle"]
    found = pg_mlx.batch_generate(model, processor, prompts, images, max_tokens=12)
    loaded = pg_mlx.load(CHECKPOINT, dtype="float32", adapter_path=save(adapter, tmp_path / "adapter"))
    wanted = pg_mlx.batch_generate(*loaded, prompts, images, max_tokens=12)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in wanted]
    adapter.remove()
    plain = pg_mlx.batch_generate(model, processor, prompts, images, max_tokens=12)
    assert [answer.token_ids for answer in found] != [answer.token_ids for answer in plain]


def test_what_was_made_ready_follows_the_adapter() -> None:
    model = fresh("pg2")
    adapter = randomised(adapt(model, replace(EVERYTHING, dora=True)))
    first = text_logits(model)
    tensors = adapter.tensors()
    adapter.load({name: 2 * array for name, array in tensors.items()})
    assert distance(text_logits(model), first) > 0.01
    adapter.load(tensors)
    assert same(text_logits(model), first)


# --- which modules -------------------------------------------------------------------------------------


def names(options: LowRankOptions, family: str = "pg2") -> set[str]:
    model = fresh(family)
    adapter = adapt(model, options)
    assert count_learnt(model.config, options) == sum(array.size for array in adapter.tensors().values())
    assert count_learnt(model.config, options) == sum(
        array.size for array in Trainer(model, adapter=adapter).weights.values()
    )
    return {name.removeprefix("language_model.model.") for name in adapter.pairs}


def test_modules_are_named_as_in_peft() -> None:
    decoder = names(LowRankOptions(rank=2))
    assert len(decoder) == 4 * 7 and all(name.startswith("layers.") for name in decoder)
    assert len(names(replace(EVERYTHING, dora=True))) == 4 * 7 + 2 * 6 + 1
    assert names(LowRankOptions(target_modules=("q_proj",), num_layers=1)) == {"layers.3.self_attn.q_proj"}
    pattern = r".*vision_tower.*layers\.1.*\.(q|k)_proj|.*projector\.linear"
    assert {name.rpartition(".")[2] for name in names(LowRankOptions(target_modules=pattern))} == {
        "q_proj",
        "k_proj",
        "linear",
    }


def test_the_first_values_depend_on_the_seed_alone() -> None:
    tensors = [adapt(fresh("pg1"), replace(EVERYTHING, seed=seed)).tensors() for seed in (1, 1, 2)]
    assert all(same(array, tensors[1][name]) for name, array in tensors[0].items())
    a = [name for name in tensors[0] if name.endswith("lora_A")]
    assert not any(same(tensors[0][name], tensors[2][name]) for name in a)
    assert all(mx.abs(tensors[0][name]).max().item() <= tensors[0][name].shape[1] ** -0.5 for name in a)


def test_what_cannot_learn_is_refused() -> None:
    model = fresh("pg1")
    with one_line_error("lm_head", "q_proj"):
        LowRankOptions(target_modules=("lm_head",))
    with one_line_error("embed_tokens"):
        adapt(model, LowRankOptions(target_modules=r".*embed_tokens"))
    with one_line_error("nothing"):
        adapt(model, LowRankOptions(target_modules="nothing like it"))
    with one_line_error("pattern"):
        adapt(model, LowRankOptions(target_modules="("))
    for wrong in (dict(rank=0), dict(alpha=0), dict(dropout=1), dict(num_layers=0)):
        with one_line_error(str(next(iter(wrong.values())))):
            LowRankOptions(**wrong)  # type: ignore[arg-type]
    raw, tensors = wide()
    raw, tensors, _ = quantized(raw, tensors, lambda _, tensor: tensor.shape[1] % 64 == 0)
    with one_line_error("packed"):
        train_all(model_of(raw, tensors))
    model.freeze()
    with one_line_error("nothing"):
        Trainer(model)


# --- folders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora_all", "dora"])
def test_a_folder_of_pefts_is_a_start(family: str, kind: str, tmp_path: Path) -> None:
    folder = TRAINING / f"{family}_{kind}_after_acc1"
    model = fresh(family)
    adapter = adapt(model, LowRankOptions(rank=1), start=folder)
    assert adapter.dora == (kind == "dora")
    theirs = mx.load(str(folder / "adapter_model.safetensors"))
    save(adapter, tmp_path / "again")
    ours = mx.load(str(tmp_path / "again/adapter_model.safetensors"))
    assert ours.keys() == theirs.keys()
    assert all(distance(ours[name], array) <= 1e-7 for name, array in theirs.items())
    config, wanted = (json.loads((path / "adapter_config.json").read_text()) for path in (tmp_path / "again", folder))
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (
        wanted["r"],
        wanted["lora_alpha"],
        wanted["use_dora"],
    )
    batch = micro(family, 0)
    merged = load_model(TRAINING.parent / f"{family}_new", dtype="float32", adapter_path=folder)
    assert abs(Trainer(model, adapter=adapter).loss(batch)[0] - _loss(merged, batch)) / batch.suffix_tokens <= 1e-5


def _loss(model: PaliGemma, batch: object) -> float:
    model.unfreeze()
    return Trainer(model).loss(batch)[0]  # type: ignore[arg-type]


def test_ranks_and_scales_of_their_own_survive(tmp_path: Path) -> None:
    raw, tensors = wide()
    folder = (
        Trained(tensors, alpha_pattern={"k_proj": 3})
        .low_rank(Q, rank=7)
        .low_rank(Q.replace("q_proj", "k_proj"), rank=2)
        .save(tmp_path / "start")
    )
    base = write_folder(tmp_path / "base", raw, tensors)
    adapter = adapt(load_model(base, dtype="float32"), LowRankOptions(), start=folder)
    again = save(adapter, tmp_path / "again")
    first, second = (load_model(base, dtype="float32", adapter_path=path) for path in (folder, again))
    assert distance(text_logits(first), text_logits(second)) <= 1e-5


def test_more_than_a_product_is_no_start(tmp_path: Path) -> None:
    raw, tensors = wide()
    for index, trained in enumerate(
        [Trained(tensors).low_rank(Q).whole(f"{Q}.weight"), Trained(tensors).embedding(EMBEDDING)]
    ):
        folder = trained.save(tmp_path / str(index))
        with one_line_error("cannot be adapted" if index else "more than a low-rank product"):
            adapt(model_of(raw, tensors), LowRankOptions(), start=folder)


def test_padding_of_the_tower_is_cut_off(tmp_path: Path) -> None:
    adapter = adapt(fresh("pg1"), EVERYTHING)
    write_peft(tmp_path, adapter.tensors(), adapter.scales(), vision_width=70)
    shapes = {
        name: array.shape
        for name, array in mx.load(str(tmp_path / "adapter_model.safetensors")).items()
        if ".layers.0.mlp.fc" in name
    }
    assert sorted(shapes.values()) == sorted([(4, 48), (70, 4), (4, 70), (48, 4)])


def test_the_pattern_of_modules_names_them_and_no_others() -> None:
    import re

    adapter = adapt(fresh("pg2"), replace(EVERYTHING, num_layers=2, target_modules=("q_proj", "fc1", "up_proj")))
    pattern = re.compile(target_pattern(adapter.pairs))
    from pg_mlx.checkpoint.adapters.peft_writer import peft_name

    everything = [peft_name(name) for name in adapt(fresh("pg2"), EVERYTHING).pairs]
    found = {name for name in everything if pattern.fullmatch(name)}
    assert found == {peft_name(name) for name in adapter.pairs}


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_weights_are_the_checkpoint(family: str) -> None:
    from pg_mlx.checkpoint.open import open_local

    source = open_local(TRAINING.parent / f"{family}_new").source
    model = fresh(family)
    assert isinstance(model.language_model.layers[0].mlp.down_proj, Linear)
    stored = dict(stored_weights(model))
    assert all(distance(array, source.read(name).astype(mx.float32)) <= 2e-7 for name, array in stored.items())
    again = build(open_local(TRAINING.parent / f"{family}_new"), "float32")
    assert (
        len(stored) == len({name for name in source.shapes if not name.startswith("language_model.lm_head")}) and again
    )
