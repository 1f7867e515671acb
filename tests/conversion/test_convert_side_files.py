"""Side files of a converted folder: brought along, written, or missed by validation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.checkpoints import GOLDEN, names, stored
from helpers.commands import CAT
from helpers.conversions import EMBEDDING, FOLDERS, convert, weights_only
from helpers.models import (
    one_line_error,
)
from helpers.vocabulary import write_small_tokenizer_json

import pg_mlx
from pg_mlx.checkpoint.validate import validate
from pg_mlx.files.json import read_json


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
