"""Checkpoints as other programs leave them: which files count, and under which names the tensors lie."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.forms import EMBEDDING, INDEX, logits
from helpers.models import (
    Json,
    Tensors,
    one_line_error,
    random_tensors,
    same,
    write_folder,
)

import pg_mlx
from pg_mlx import load_model
from pg_mlx.checkpoint.validate import validate
from pg_mlx.checkpoint.weight_files import choose_weight_files
from pg_mlx.errors import InputError


def shards(folder: Path, tensors: Tensors, count: int = 2, index: bool = True) -> list[str]:
    """The tensors in several files, as transformers writes them."""
    folder.mkdir(exist_ok=True)
    names = [f"model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    places = {name: names[at % count] for at, name in enumerate(tensors)}
    for file in names:
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in tensors if places[name] == file})
    if index:
        (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return names


def test_a_stale_index(
    raw: Json, tensors: Tensors, expected: mx.array, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shards were saved first, then one file, or fewer shards: the others have gone, the index has not."""
    folder = tmp_path / "stale"
    names = shards(folder, random_tensors(raw, 5), 3)
    for name in names:
        (folder / name).unlink()
    with one_line_error("lacks 3 of 3 weight files"):
        write_folder(folder, raw, {}).joinpath("model.safetensors").unlink()
        load_model(folder)
    write_folder(folder, raw, tensors)
    assert same(logits(folder), expected)
    note = capsys.readouterr().err
    assert "reading model.safetensors instead" in note and len(note.splitlines()) == 1
    (folder / "model.safetensors").unlink()
    shards(folder, tensors, 2, index=False)
    assert same(logits(folder), expected)
    assert "model-00001-of-00002.safetensors with 1 more instead" in capsys.readouterr().err
    (folder / names[1]).write_bytes(b"of the older set")
    assert same(logits(folder), expected)


def test_two_checkpoints_in_one_folder(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    both = write_folder(tmp_path / "both", raw, tensors)
    shards(both, tensors)
    with one_line_error("two checkpoints", "model.safetensors", "model-00001-of-00002.safetensors"):
        load_model(both)
    (both / INDEX).unlink()
    with one_line_error("two checkpoints", "model.safetensors", "model-00001-of-00002.safetensors"):
        load_model(both)
    (both / "model-00001-of-00002.safetensors").unlink()  # then the rest is no checkpoint
    load_model(both)
    for name in ("adapter_model.safetensors", "adapters.safetensors"):
        folder = write_folder(tmp_path / name, raw, tensors)
        (folder / name).write_bytes(b"x")
        with one_line_error("two things", "model.safetensors", name):
            load_model(folder)


def test_files_are_chosen_by_names_alone() -> None:
    def chosen(*names: str, weight_map: object = None) -> list[str]:
        return choose_weight_files("there", names, weight_map)[0]

    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert chosen(one, two, "x.json") == [one, two]
    assert chosen(one, two, weight_map={"a": two, "b": one}) == [one, two]
    assert chosen("weights.00.safetensors", "weights.01.safetensors")[1] == "weights.01.safetensors"
    assert chosen("paligemma.safetensors", "._paligemma.safetensors") == ["paligemma.safetensors"]
    assert chosen("model.safetensors", "consolidated.safetensors", "optimizer.safetensors") == ["model.safetensors"]
    for wrong in ([], ["model-00001-of-99999999.safetensors"], ["adapter_model.safetensors"]):
        with pytest.raises(InputError):
            chosen(*wrong)


PREFIXES = [
    "_orig_mod.",
    "module.",
    "model.",
    "base_model.model.",
    "paligemma.",
    "vlm.",
    "module._orig_mod.",
    "a.b-c.d.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_prefix_before_all_names(
    prefix: str, raw: Json, tensors: Tensors, expected: mx.array, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "wrapped", raw, {prefix + name: tensor for name, tensor in tensors.items()})
    assert same(logits(folder), expected)
    assert any("not the classic name" in problem for problem in validate(folder))
    pg_mlx.convert(folder, tmp_path / "out", need_tokenizer=False, check=False)
    assert same(logits(tmp_path / "out"), expected)


def test_wrappers_within_names(raw: Json, tensors: Tensors, expected: mx.array, tmp_path: Path) -> None:
    inner = {
        name.replace("layers.0.", "layers.0._checkpoint_wrapped_module.").replace(
            "model.", "model._orig_mod.", 1
        ): tensor
        for name, tensor in tensors.items()
    }
    assert same(logits(write_folder(tmp_path / "inner", raw, inner)), expected)


def test_prefixes_of_two_models_and_names_outside_are_refused(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    two = {f"{prefix}.{name}": tensor for prefix in ("ema", "live") for name, tensor in tensors.items()}
    with one_line_error("several models", "'ema.'", "'live.'"):
        load_model(write_folder(tmp_path / "two", raw, two))
    more = {f"vlm.{name}": tensor for name, tensor in tensors.items()} | {"proj.weight": mx.zeros((2, 2))}
    with one_line_error("1 surplus: proj.weight"):
        load_model(write_folder(tmp_path / "more", raw, more))


@pytest.mark.parametrize("part", ["lora_A.default.weight", "base_layer.weight", "lora_magnitude_vector.default.weight"])
def test_adapters_that_were_not_merged_are_named(part: str, raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    query = "language_model.model.layers.0.self_attn.q_proj"
    unmerged = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    unmerged[f"base_model.model.{query}.{part}"] = mx.zeros((2, 32))
    with one_line_error("not merged", query, "merge_and_unload()"):
        load_model(write_folder(tmp_path / "unmerged", raw, unmerged))


@pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight", "_orig_mod.lm_head.weight"])
def test_a_head_alone_is_the_table(name: str, raw: Json, tensors: Tensors, expected: mx.array, tmp_path: Path) -> None:
    """As safetensors' save_model leaves it; not if config.json says that the two differ."""
    prefix = name.removesuffix("language_model.lm_head.weight").removesuffix("lm_head.weight")
    headed = {prefix + key: tensor for key, tensor in tensors.items()}
    headed[name] = headed.pop(f"{prefix}{EMBEDDING}.weight")
    folder = write_folder(tmp_path / "headed", raw, headed)
    assert same(logits(folder), expected)
    with one_line_error("embed_tokens"):
        load_model(write_folder(folder, raw | {"tie_word_embeddings": False}, headed))
