"""Conversion: whatever comes in, the same numbers go out, in a folder that is complete."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.checkpoints import GOLDEN, assert_same, config_of, names, read_all, stored
from helpers.commands import CAT, tiny_checkpoint
from helpers.models import (
    FAMILIES,
    channels_second,
    config_json,
    distance,
    one_line_error,
    random_tensors,
    write_folder,
)
from helpers.vocabulary import write_small_tokenizer_json

import pg_mlx
from pg_mlx.checkpoint.big_vision import BigVisionArchive
from pg_mlx.checkpoint.layouts import PATCH_KERNEL, infer_dimensions, weight_specs
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.checkpoint.validate import validate
from pg_mlx.config import PaliGemmaConfig
from pg_mlx.conversion import pipeline
from pg_mlx.files.json import read_json
from pg_mlx.files.shards import ShardWriter

FOLDERS = ["pg1_classic", "pg1_new", "pg2_classic", "pg2_new"]
EMBEDDING = "language_model.model.embed_tokens.weight"
TOLERANCE = 1e-4
"""Of logits in float32: our sums have another order than the reference's."""

convert = partial(pg_mlx.convert, check=False)
weights_only = partial(convert, need_tokenizer=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint in bfloat16, with a tokenizer."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


# --- numbers --------------------------------------------------------------------------------------------


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


# --- odd sources ----------------------------------------------------------------------------------------


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


# --- what lies beside the weights -----------------------------------------------------------------------


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


def test_side_files_come_along_and_others_do_not(tiny: Path, tmp_path: Path):
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    write_small_tokenizer_json(source)
    small = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"}
    for name in small:
        (source / name).write_text(json.dumps({"from": name}))
    (source / "added_tokens.json").write_text(json.dumps({"<image>": 3_000}))
    (source / "preprocessor_config.json").write_text(json.dumps({"resample": 2, "size": {"height": 1, "width": 1}}))
    (source / "training_args.bin").write_bytes(b"0")
    convert(source, tmp_path / "out")
    for name in (*small, "tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes(), name
    assert not (tmp_path / "out" / "training_args.bin").exists()
    preprocessor = read_json(tmp_path / "out" / "preprocessor_config.json")
    assert (preprocessor["resample"], preprocessor["size"]) == (2, {"height": 56, "width": 56})
    assert (preprocessor["image_seq_length"], preprocessor["image_mean"]) == (16, [0.5] * 3)
    assert "converted from `source` for MLX" in (tmp_path / "out" / "README.md").read_text()


def test_what_a_source_lacks_is_written(tiny: Path, tmp_path: Path):
    convert(tiny, tmp_path / "out")
    assert read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == 1
    assert read_json(tmp_path / "out" / "tokenizer_config.json")["processor_class"] == "PaliGemmaProcessor"
    assert read_json(tmp_path / "out" / "preprocessor_config.json")["resample"] == 3


def test_a_given_tokenizer_replaces_all_of_the_sources(tiny: Path, tmp_path: Path):
    """Of two vocabularies in a folder a program might load the wrong one."""
    source = Path(shutil.copytree(tiny, tmp_path / "source"))
    (source / "tokenizer.json").write_text("not the one")
    (source / "tokenizer_config.json").write_text("nor this")
    (source / "generation_config.json").write_text('{"do_sample": true}')
    for given in (tiny / "tokenizer.model", tiny):
        convert(source, tmp_path / "out", tokenizer=given, force=True)
        assert (tmp_path / "out" / "tokenizer.model").read_bytes() == (tiny / "tokenizer.model").read_bytes()
        assert all(b"not the one" not in path.read_bytes() for path in (tmp_path / "out").glob("tokenizer*"))
        assert read_json(tmp_path / "out" / "tokenizer_config.json")["tokenizer_class"] == "GemmaTokenizer"
        assert read_json(tmp_path / "out" / "generation_config.json") == {"do_sample": True}


def test_tokenizers_that_would_not_work(tiny: Path, tmp_path: Path):
    archive, out = GOLDEN / "pg1_big_vision.npz", tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with one_line_error("pg1_big_vision.npz has no tokenizer", "--tokenizer", "--no-tokenizer"):
        convert(archive, out)
    with one_line_error("empty", "no tokenizer"):
        convert(archive, out, tokenizer=tmp_path / "empty")
    with one_line_error("cat.jpg", "not a readable tokenizer"):
        convert(archive, out, tokenizer=CAT)
    with one_line_error("pieces", "only 288 rows"):
        convert(archive, out, tokenizer=tiny / "tokenizer.model")
    assert names(tmp_path) == ["empty"]


def test_an_archive_with_a_tokenizer_answers(tiny: Path, tmp_path: Path):
    with np.load(GOLDEN / "pg1_big_vision.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    table = arrays["params/llm/embedder/input_embedding"]
    arrays["params/llm/embedder/input_embedding"] = np.resize(table, (1856, table.shape[1]))
    np.savez(tmp_path / "pg.npz", **arrays)
    convert(tmp_path / "pg.npz", tmp_path / "out", tokenizer=tiny / "tokenizer.model")
    assert validate(tmp_path / "out") == []
    model, processor = pg_mlx.load(tmp_path / "out")
    assert pg_mlx.generate(model, processor, "caption en", CAT, max_tokens=3).stats.decode_tokens <= 3


@pytest.mark.parametrize("source", FOLDERS)
def test_validation_finds_what_other_programs_stumble_over(source: str, tmp_path: Path):
    """transformers' names and patch kernel, no preprocessor_config.json, no tokenizer; fields left to defaults."""
    problems = "\n".join(validate(GOLDEN / source))
    assert "no tokenizer" in problems and "preprocessor_config.json" in problems and "patch kernel" in problems
    assert ("not the classic name" in problems) == source.endswith("new")
    weights_only(GOLDEN / source, tmp_path / "out")
    assert len(validate(tmp_path / "out")) == 1 and "tokenizer" in validate(tmp_path / "out")[0]
    path = tmp_path / "out" / "config.json"
    raw = read_json(path)
    del raw["vision_config"]["image_size"], raw["ignore_index"]
    path.write_text(json.dumps(raw))
    told = [problem for problem in validate(tmp_path / "out") if "tokenizer" not in problem]
    assert told == ["config.json lacks ignore_index", "config.json lacks vision_config.image_size"]


def test_validation_finds_a_stored_head(tiny: Path, tmp_path: Path):
    convert(tiny, tmp_path / "out")
    path = tmp_path / "out" / "model-00001-of-00001.safetensors"
    tensors = stored(tmp_path / "out")
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors | {"language_model.lm_head.weight": tensors[EMBEDDING]})
    assert [problem for problem in validate(tmp_path / "out") if "lm_head" in problem]
    assert len(validate(tmp_path / "out")) == 1
