"""Adapters of embedding and head, as PEFT saves them, against PEFT's own logits: tables trained together and apart,
single tokens, resized vocabularies. Float and packed, loaded and converted."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.heads import (
    ANSWER,
    GOLDEN_HEADS,
    GROUP,
    MORE_ROWS,
    PROMPT,
    ROWS,
    expected,
    golden_logits,
    heads_config,
    heads_pixels,
    heads_tensors,
    is_packable,
)
from helpers.models import FAMILIES, distance, one_line_error, quantized, write_folder

from pg_mlx import convert, load_model
from pg_mlx.checkpoint.open import open_local
from pg_mlx.checkpoint.validate import validate
from pg_mlx.conversion.layerwise import AnsweredPrompt, Streamed

TOLERANCE = 1e-4
CASES = sorted(folder.name.partition("_")[2] for folder in GOLDEN_HEADS.glob("gemma2_*"))
APART = {"both", "embedding", "head", "low_rank", "low_rank_head"}
APART |= {"resized_both", "resized_low_rank", "resized_low_rank_head"}


def base(family: str, folder: Path, packed: bool = False) -> Path:
    raw, tensors = heads_config(family), heads_tensors(family)
    if packed:
        raw, tensors, floats = quantized(raw, tensors, is_packable, 8, GROUP)
        assert all(distance(floats[name], tensor) == 0 for name, tensor in heads_tensors(family).items())
    return write_folder(folder, raw, tensors)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loaded(family: str, packed: bool, case: str, tmp_path: Path) -> None:
    adapter = GOLDEN_HEADS / f"{family}_{case}"
    model = load_model(base(family, tmp_path, packed), dtype="float32", adapter_path=adapter, keep_quantized=True)
    assert model.config.tie_word_embeddings == (case not in APART)
    assert model.config.text.vocab_size == (MORE_ROWS if case.startswith("resized") else ROWS)
    assert distance(golden_logits(model), expected(f"{family}_{case}")) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_converted(family: str, case: str, tmp_path: Path) -> None:
    """Merged and written as floats, from floats and from packed ones; and the result is a checkpoint like any other."""
    adapter = GOLDEN_HEADS / f"{family}_{case}"
    for packed in (False, True):
        source = base(family, tmp_path / f"base {packed}", packed)
        target = tmp_path / f"result {packed}"
        convert(
            source,
            target,
            adapter_path=adapter,
            dequantize=packed,
            dtype="float32",
            need_tokenizer=False,
            check=False,
        )
        assert distance(golden_logits(load_model(target, dtype="float32")), expected(f"{family}_{case}")) <= TOLERANCE
        config = json.loads((target / "config.json").read_text())
        assert config["tie_word_embeddings"] is config["text_config"]["tie_word_embeddings"] is (case not in APART)
        assert open_local(target).config.tie_word_embeddings is (case not in APART)


@pytest.mark.parametrize("case", sorted(APART))
def test_converted_into_8_bits(case: str, tmp_path: Path) -> None:
    """Packing rounds what was trained; loaded, the packed folder is what its own unpacked floats are."""
    source, packed, floats = (tmp_path / name for name in ("base", "packed", "floats"))
    options = dict(need_tokenizer=False, check=False, dtype="float32")
    base("gemma2", source)
    adapter = GOLDEN_HEADS / f"gemma2_{case}"
    convert(source, packed, adapter_path=adapter, q_bits=8, q_group_size=GROUP, **options)
    convert(packed, floats, dequantize=True, **options)
    kept = golden_logits(load_model(packed, dtype="float32", keep_quantized=True))
    assert "language_model.lm_head.scales" in open_local(packed).source.shapes
    assert distance(kept, golden_logits(load_model(floats, dtype="float32"))) <= TOLERANCE
    assert distance(kept, expected(f"gemma2_{case}")) < 0.2


def untied(family: str, folder: Path, tie: bool = False) -> Path:
    raw, tensors = heads_config(family), heads_tensors(family)
    tensors["language_model.lm_head.weight"] = expected("untied.head").astype(mx.float32)
    return write_folder(folder, raw | {"tie_word_embeddings": tie}, tensors)


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stored_head_is_used(family: str, tie: bool, tmp_path: Path) -> None:
    """Whatever config.json says; and it survives a conversion."""
    source = untied(family, tmp_path / "untied", tie)
    wanted = expected(f"{family}_untied")
    assert distance(wanted, expected(f"{family}_base")) > 1
    assert distance(golden_logits(load_model(source, dtype="float32")), wanted) <= TOLERANCE
    convert(source, tmp_path / "converted", need_tokenizer=False, check=False)
    assert distance(golden_logits(load_model(tmp_path / "converted", dtype="float32")), wanted) <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_is_a_copy_is_the_embedding(family: str, tmp_path: Path) -> None:
    for packed in (False, True):
        raw, tensors = heads_config(family) | {"tie_word_embeddings": False}, heads_tensors(family)
        if packed:
            raw, tensors, _ = quantized(raw, tensors, is_packable, 8, GROUP)
        for name in [name for name in tensors if ".embed_tokens." in name]:
            tensors[f"lm_head.{name.rpartition('.')[2]}"] = tensors[name]
        folder = write_folder(tmp_path / str(packed), raw, tensors)
        model = load_model(folder, dtype="float32", keep_quantized=True)
        assert model.config.tie_word_embeddings and "lm_head" not in model.language_model
        assert distance(golden_logits(model), expected(f"{family}_base")) <= TOLERANCE


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_alone_is_the_embedding_too(family: str, packed: bool, tmp_path: Path) -> None:
    """It is tied, an adapter of both changes it as one table, and a conversion writes it under the usual name."""
    raw, tensors = heads_config(family), heads_tensors(family)
    if packed:
        raw, tensors, _ = quantized(raw, tensors, is_packable, 8, GROUP)
    named = {name.replace("language_model.model.embed_tokens.", "lm_head."): tensors[name] for name in tensors}
    folder = write_folder(tmp_path / "alone", raw, named)
    model = load_model(folder, dtype="float32", keep_quantized=True)
    assert model.config.tie_word_embeddings and "lm_head" not in model.language_model
    assert distance(golden_logits(model), expected(f"{family}_base")) <= TOLERANCE
    both = load_model(folder, dtype="float32", adapter_path=GOLDEN_HEADS / f"{family}_both")
    assert distance(golden_logits(both), expected(f"{family}_both")) <= TOLERANCE
    convert(folder, tmp_path / "out", need_tokenizer=False, check=False, dequantize=packed)
    assert not any("lm_head" in name for name in open_local(tmp_path / "out").source.shapes)


def test_validate_tells_a_copied_head_from_one_in_place_of_the_embedding(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", heads_config("gemma2"), heads_tensors("gemma2"))
    convert(base, tmp_path / "out", need_tokenizer=False, check=False)
    (path,) = (tmp_path / "out").glob("*.safetensors")
    tensors = mx.load(str(path))
    mx.eval(tensors)
    table, head = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    for words in ("is a copy of the embedding", "in place of the embedding"):
        tensors[head] = tensors[table] if words.startswith("is") else tensors.pop(table)
        mx.save_safetensors(str(path), tensors)
        (problem,) = [line for line in validate(tmp_path / "out") if "lm_head" in line]
        assert words in problem


@pytest.mark.parametrize("case", ["low_rank_head", "tokens"])
def test_an_adapter_on_a_head_of_its_own(case: str, tmp_path: Path) -> None:
    """Merged, it is what it is beside packed weights; single tokens change the embedding only."""
    adapter = GOLDEN_HEADS / f"gemma2_{case}"
    source = untied("gemma2", tmp_path / "untied")
    merged = load_model(source, dtype="float32", adapter_path=adapter)
    head = merged.language_model.lm_head.weight
    changed = distance(head, expected("untied.head").astype(mx.float32)) > 0.01
    assert changed == (case == "low_rank_head")
    convert(
        source, tmp_path / "packed", q_bits=8, q_group_size=GROUP, need_tokenizer=False, check=False, dtype="float32"
    )
    convert(tmp_path / "packed", tmp_path / "floats", dequantize=True, need_tokenizer=False, check=False)
    beside, floats = (
        load_model(tmp_path / name, dtype="float32", adapter_path=adapter, keep_quantized=True)
        for name in ("packed", "floats")
    )
    assert distance(golden_logits(beside), golden_logits(floats)) <= TOLERANCE


def test_few_trained_tokens_leave_the_table_packed(tmp_path: Path) -> None:
    model = load_model(
        base("gemma2", tmp_path, packed=True),
        dtype="float32",
        adapter_path=GOLDEN_HEADS / "gemma2_tokens",
        keep_quantized=True,
    )
    table = model.language_model.embed_tokens
    assert table.quantization is not None and table.down.shape == (3, 64)


def test_a_gap_in_the_grown_rows_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN_HEADS / "gemma2_resized_tokens", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["trainable_token_indices"][3] = MORE_ROWS
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with one_line_error(f"token {ROWS}", "save_embedding_layers"):
        load_model(base("gemma2", tmp_path / "base"), adapter_path=folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_its_own_is_streamed_too(family: str, tmp_path: Path) -> None:
    """As the comparison after a conversion reads it: the logits that predict the answer's tokens."""
    streamed = Streamed(open_local(untied(family, tmp_path)), "float32")
    features = streamed.features([mx.array(heads_pixels())])
    (hidden,) = streamed.hidden(features, [AnsweredPrompt(0, PROMPT, [*ANSWER, 1])])
    wanted = expected(f"{family}_untied")[len(PROMPT) - 1 :]
    assert distance(streamed.head(0, ROWS)(hidden), wanted) <= TOLERANCE
    assert distance(streamed.head(50, 60)(hidden), wanted[:, 50:60]) <= TOLERANCE


def test_small_packed_tables_may_be_held_as_floats(tmp_path: Path) -> None:
    """Both tables, where the CPU backend does so for a whole model."""
    options = dict(need_tokenizer=False, check=False, dtype="float32")
    convert(untied("gemma2", tmp_path / "untied"), tmp_path / "packed", q_bits=8, q_group_size=GROUP, **options)
    kept = load_model(tmp_path / "packed", dtype="float32", keep_quantized=True)
    held = load_model(tmp_path / "packed", dtype="float32")
    model = held.language_model
    assert (model.lm_head.quantization is None) == (model.embed_tokens.quantization is None)
    assert distance(golden_logits(kept), golden_logits(held)) <= TOLERANCE


def test_validate_says_what_other_programs_do(tmp_path: Path) -> None:
    convert(untied("gemma2", tmp_path / "untied"), tmp_path / "out", need_tokenizer=False, check=False)
    (problem,) = [line for line in validate(tmp_path / "out") if "lm_head" in line]
    assert all(word in problem for word in ("head of its own", "transformers", "mlx-vlm", "Swift", "refuse"))
