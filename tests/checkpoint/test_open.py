"""One road to every checkpoint: an archive answers as its conversion does, and a source can be read again."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.adapters import write_adapter
from helpers.checkpoints import GOLDEN, assert_same, read_all
from helpers.commands import CAT, tiny_checkpoint
from helpers.models import one_line_error, same, text_logits

import pg_mlx
from pg_mlx.checkpoint.adapters.merge import Adapter
from pg_mlx.checkpoint.open import open_checkpoint, open_local
from pg_mlx.checkpoint.validate import validate
from pg_mlx.cli import main
from pg_mlx.conversion.pipeline import Conversion


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny") / "tokenizer.model"


@pytest.fixture(scope="module", params=["pg1", "pg2"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A big_vision archive whose embedding has rows for a small vocabulary."""
    with np.load(GOLDEN / f"{request.param}_big_vision.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    table = "params/llm/embedder/input_embedding"
    arrays[table] = np.resize(arrays[table], (1856, arrays[table].shape[1]))
    path = tmp_path_factory.mktemp("archives") / "pg.npz"
    np.savez(path, **arrays)
    return path


def test_an_archive_loads_as_its_conversion_does(archive: Path, vocabulary: Path, tmp_path: Path) -> None:
    pg_mlx.convert(archive, tmp_path / "out", tokenizer=vocabulary, check=False)
    expected, processor = pg_mlx.load(tmp_path / "out", dtype="float32")
    model, own = pg_mlx.load(archive, tokenizer=vocabulary, dtype="float32")
    assert same(text_logits(model), text_logits(expected))
    answer, same_answer = (
        pg_mlx.generate(m, p, "caption en", CAT, max_tokens=8).token_ids
        for m, p in ((model, own), (expected, processor))
    )
    assert answer == same_answer and len(answer) > 0
    assert same(text_logits(pg_mlx.load_model(archive, dtype="float32")), text_logits(expected))


def test_generate_answers_with_an_archive(
    archive: Path, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pg_mlx.convert(archive, tmp_path / "out", tokenizer=vocabulary, check=False)
    asked = ["--image", str(CAT), "--prompt", "caption en", "--max-tokens", "8", "--format", "json"]
    texts = []
    for model in (
        (archive, "--tokenizer", vocabulary),
        (archive.parent, "--tokenizer", vocabulary),
        (tmp_path / "out",),
    ):
        assert main(["generate", "--model", *map(str, model), *asked]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] == texts[2]


def test_an_archive_without_a_tokenizer_is_one_line(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with one_line_error("pg.npz has no tokenizer", "--tokenizer FOLDER|REPO|FILE"):
        pg_mlx.load(archive)
    assert main(["generate", "--model", str(archive), "--image", str(CAT), "--prompt", ""]) == 2
    out, errors = capsys.readouterr()
    assert out == "" and len(errors.splitlines()) == 1 and "--tokenizer FOLDER|REPO|FILE" in errors
    with one_line_error("no such file", "nothere.npz"):
        pg_mlx.load(tmp_path / "nothere.npz")
    with one_line_error("holds no tokenizer", str(tmp_path)):
        pg_mlx.load(archive, tokenizer=tmp_path)


def test_what_an_archive_needs_is_known_before_it_is_read(archive: Path, vocabulary: Path) -> None:
    with one_line_error("needs", "more than the 0.1 MB allowed"):
        pg_mlx.load(archive, tokenizer=vocabulary, max_memory="100kB")
    pg_mlx.load(archive, tokenizer=vocabulary, max_memory="1GB")


def test_another_tokenizer_takes_the_place_of_a_folders(vocabulary: Path, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    (folder / "tokenizer.model").write_text("broken")
    with one_line_error("not a readable tokenizer"):
        pg_mlx.load(folder)
    for given in (vocabulary, vocabulary.parent, str(vocabulary)):
        _, processor = pg_mlx.load(folder, tokenizer=given)
        assert processor.prompt_ids("caption en")


@pytest.mark.parametrize("source", ["pg1_classic", "pg2_new", "pg1_big_vision.npz"])
def test_a_source_can_be_read_again(source: str) -> None:
    opened = open_local(GOLDEN / source).source
    first = read_all(opened)
    mx.eval(first)
    assert_same(read_all(opened), first)


def test_quantized_weights_that_an_adapter_is_merged_into_can_be_read_again(tmp_path: Path) -> None:
    pg_mlx.convert(GOLDEN / "pg1_classic", tmp_path / "four", q_bits=4, q_group_size=32, need_tokenizer=False)
    name = "language_model.model.layers.0.self_attn.o_proj"
    outputs, columns = open_local(GOLDEN / "pg1_classic").source.shapes[f"{name}.weight"]
    factors = {"A": mx.random.normal((2, columns)), "B": mx.random.normal((outputs, 2))}
    arrays = {f"base_model.model.{name}.lora_{part}.weight": factor for part, factor in factors.items()}
    adapter = write_adapter(tmp_path / "adapter", arrays, peft_type="LORA", r=2, lora_alpha=4)
    plain = open_checkpoint(tmp_path / "four")
    merged = plain.merged([Adapter(adapter)])
    assert plain.is_quantized() and not merged.is_quantized()
    first = read_all(merged.source)
    assert first[f"{name}.weight"].dtype == mx.float32
    assert_same(read_all(merged.source), first)
    assert merged.source.stored_bytes(f"{name}.weight") < first[f"{name}.weight"].nbytes / 4


def test_a_checkpoint_is_checked_when_it_is_opened(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    raw = json.loads((folder / "config.json").read_text())
    raw["text_config"]["head_dim"] *= 2
    (folder / "config.json").write_text(json.dumps(raw))
    complaints = []
    for opening in (pg_mlx.load, pg_mlx.load_model, open_checkpoint, Conversion):
        with pytest.raises(pg_mlx.InputError) as caught:
            opening(folder)
        complaints.append(str(caught.value))
    assert len(set(complaints)) == 1 and complaints[0] in "\n".join(validate(folder))
