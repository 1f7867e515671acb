"""Conversion: whatever comes in, the same numbers go out, in a folder that is complete."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.checkpoints import GOLDEN, assert_same, config_of, read_all, stored
from helpers.commands import CAT
from helpers.conversions import EMBEDDING, FOLDERS, convert, weights_only
from helpers.models import (
    FAMILIES,
    channels_second,
    config_json,
    distance,
    random_tensors,
    write_folder,
)

import pg_mlx
from pg_mlx.checkpoint.big_vision import BigVisionArchive
from pg_mlx.checkpoint.layouts import PATCH_KERNEL, infer_dimensions, weight_specs
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.checkpoint.validate import validate
from pg_mlx.config import PaliGemmaConfig
from pg_mlx.conversion import pipeline
from pg_mlx.files.json import read_json
from pg_mlx.files.shards import ShardWriter

TOLERANCE = 1e-4
"""Of logits in float32: our sums have another order than the reference's."""


@pytest.mark.parametrize("source", [*FOLDERS, "pg1_big_vision.npz"])
def test_golden_logits_come_out_of_every_layout(source: str, tmp_path: Path):
    weights_only(GOLDEN / source, tmp_path / "out")
    model = pg_mlx.load_model(tmp_path / "out", dtype="float32")
    golden = mx.load(str(GOLDEN / f"{source[:3]}_batch1.safetensors"))
    assert isinstance(golden, dict)
    features = model.encode_image(golden["pixel_values"].transpose(0, 2, 3, 1))
    images = features.shape[1]
    worst = distance(model.logits(features, golden["input_ids"][:, images:]), golden["prefill_logits"][:, images:])
    print(f"{source}: off by {worst:.1e} at most")
    assert worst <= TOLERANCE


@pytest.mark.parametrize("source", FOLDERS)
def test_tensors_are_the_sources_bit_by_bit_under_classic_names(source: str, tmp_path: Path):
    report = weights_only(GOLDEN / source, tmp_path / "out")
    written = stored(tmp_path / "out")
    assert_same(written, read_all(SafetensorsFolder(GOLDEN / source)))
    assert sorted(written) == sorted(
        name for spec in weight_specs(config_of(tmp_path / "out")) for name, _ in spec.expected()
    )
    assert written[PATCH_KERNEL].shape == (48, 14, 14, 3)
    assert report.bytes_after == (tmp_path / "out" / "model-00001-of-00001.safetensors").stat().st_size
    assert report.left_float == [] and report.quality is None


@pytest.mark.parametrize("family", ["pg1", "pg2"])
def test_archives_give_the_same_tensors_in_their_own_dtype(family: str, tmp_path: Path):
    """PaliGemma 2's golden archive holds bfloat16 as numpy writes it: two bytes called void."""
    archive = GOLDEN / f"{family}_big_vision.npz"
    weights_only(archive, tmp_path / "out")
    written = stored(tmp_path / "out")
    assert_same(written, read_all(BigVisionArchive(archive)))
    assert {tensor.dtype for tensor in written.values()} == {mx.bfloat16 if family == "pg2" else mx.float32}
    classic = read_all(SafetensorsFolder(GOLDEN / f"{family}_classic"))
    assert_same({name: tensor.astype(mx.float32) for name, tensor in written.items()}, classic)


@pytest.mark.parametrize("family", ["pg1", "pg2"])
def test_converting_again_and_from_another_layout_gives_the_same_files(family: str, tmp_path: Path):
    weights_only(GOLDEN / f"{family}_classic", tmp_path / "first")
    weights_only(tmp_path / "first", tmp_path / "again")
    weights_only(GOLDEN / f"{family}_new", tmp_path / "new")
    for name in ("model-00001-of-00001.safetensors", "model.safetensors.index.json", "preprocessor_config.json"):
        first = (tmp_path / "first" / name).read_bytes()
        assert first == (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()
    assert read_json(tmp_path / "first" / "config.json") == read_json(tmp_path / "again" / "config.json")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_of_everything_and_the_stored_one_unless_told(dtype: str, tmp_path: Path):
    source = GOLDEN / "pg1_classic"
    weights_only(source, tmp_path / "told", dtype=dtype)
    weights_only(tmp_path / "told", tmp_path / "kept")
    wanted = getattr(mx, dtype)
    expected = {name: tensor.astype(wanted) for name, tensor in read_all(SafetensorsFolder(source)).items()}
    for folder in ("told", "kept"):
        assert_same(stored(tmp_path / folder), expected)
        raw = read_json(tmp_path / folder / "config.json")
        assert raw["torch_dtype"] == raw["text_config"]["torch_dtype"] == raw["vision_config"]["torch_dtype"] == dtype


def test_weights_in_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pipeline, "ShardWriter", partial(ShardWriter, shard_bytes=100_000))
    weights_only(GOLDEN / "pg2_classic", tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 5
    assert [path.name for path in shards] == [
        f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)
    ]
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    written = stored(tmp_path / "out")
    assert index["weight_map"] == {name: path.name for path in shards for name in mx.load(str(path))}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written.values())
    assert_same(written, read_all(SafetensorsFolder(GOLDEN / "pg2_classic")))
    assert_same(read_all(SafetensorsFolder(tmp_path / "out")), written)


def test_a_stored_copy_of_the_head_is_dropped(tmp_path: Path):
    raw = config_json("gemma2")
    tensors = random_tensors(raw)
    head = {"language_model.lm_head.weight": mx.contiguous(tensors[EMBEDDING])}
    source = write_folder(tmp_path / "source", raw, channels_second(tensors) | head)
    weights_only(source, tmp_path / "out")
    assert_same(stored(tmp_path / "out"), tensors)


def test_an_archive_with_as_many_rows_as_published(tmp_path: Path):
    """257152: all ids that have text, but no row for <image>, whose id is the next. So 64 rows of zeros are added."""
    with np.load(GOLDEN / "pg1_big_vision.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    rows = np.zeros((257152, 64), np.uint16)
    rows[-1] = 0x3F80  # 1 in bfloat16
    arrays["params/llm/embedder/input_embedding"] = rows.view("V2")
    np.savez(tmp_path / "pg.npz", **arrays)
    weights_only(tmp_path / "pg.npz", tmp_path / "out")
    config = config_of(tmp_path / "out")
    assert (config.text.vocab_size, config.image_token_index) == (257216, 257152)
    model = pg_mlx.load_model(tmp_path / "out", dtype="float32")
    logits = model.logits(model.encode_image(mx.zeros((1, 56, 56, 3))), mx.array([[2, 257151, 108]]))
    assert logits.shape == (1, 3, 257216)
    assert logits[..., 257151].all() and not logits[..., :257151].any() and not logits[..., 257152:].any()


def test_a_folder_with_one_archive_is_that_archive(tmp_path: Path):
    (tmp_path / "kaggle").mkdir()
    shutil.copyfile(GOLDEN / "pg1_big_vision.npz", tmp_path / "kaggle" / "paligemma.npz")
    weights_only(tmp_path / "kaggle", tmp_path / "out")
    assert_same(stored(tmp_path / "out"), read_all(SafetensorsFolder(GOLDEN / "pg1_classic")))


@pytest.mark.parametrize("source", FOLDERS)
def test_config_json_means_the_same_and_needs_no_defaults(source: str, tmp_path: Path):
    weights_only(GOLDEN / source, tmp_path / "out")
    reader = SafetensorsFolder(GOLDEN / source)
    raw = read_json(tmp_path / "out" / "config.json")
    assert PaliGemmaConfig.from_dict(raw) == PaliGemmaConfig.from_dict(
        read_json(GOLDEN / source / "config.json"), infer_dimensions(reader.shapes)
    )
    gemma2 = {
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "sliding_window",
        "layer_types",
    }
    both = {
        *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
        *("num_key_value_heads", "vocab_size", "rms_norm_eps", "rope_theta", "max_position_embeddings", "hidden_act"),
        *("hidden_activation", "attention_bias", "num_image_tokens", "tie_word_embeddings", "torch_dtype"),
    }
    written = set(raw["text_config"])
    assert both <= written and (gemma2 <= written if source.startswith("pg2") else not gemma2 & written)
    vision = {
        "image_size",
        "patch_size",
        "num_channels",
        "layer_norm_eps",
        "projection_dim",
        "hidden_act",
        "vision_use_head",
    }
    assert vision <= set(raw["vision_config"])
    assert raw["projection_dim"] == raw["hidden_size"] == raw["vision_config"]["projection_dim"] == 64


@pytest.mark.parametrize("family", FAMILIES)
def test_unusual_numbers_survive(family: str, tmp_path: Path):
    text = dict(rms_norm_eps=1e-5, rope_theta=5000.0, query_pre_attn_scalar=12.5, final_logit_softcapping=None,
                sliding_window=None, layer_types=["full_attention", "full_attention", "sliding_attention"])  # fmt: skip
    raw = config_json(family, text, dict(layer_norm_eps=1e-5), image_token_index=90)
    source = write_folder(tmp_path / "source", raw, random_tensors(raw))
    weights_only(source, tmp_path / "out")
    assert config_of(tmp_path / "out") == PaliGemmaConfig.from_dict(raw)
    assert config_of(tmp_path / "out").image_token_index == 90


def test_a_converted_folder_is_valid_and_answers_like_its_source(tiny: Path, tmp_path: Path):
    convert(tiny, tmp_path / "out")
    assert validate(tmp_path / "out") == []
    answers = []
    for folder in (tiny, tmp_path / "out"):
        model, processor = pg_mlx.load(folder, dtype="float32")
        answers.append(pg_mlx.generate(model, processor, "caption en", CAT, max_tokens=6).token_ids)
    assert answers[0] == answers[1] and len(answers[0]) > 0
