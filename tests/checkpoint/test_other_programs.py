"""What other programs have packed, saved in another form, or left unfinished: read, or named with the way out."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.forms import INDEX, logits
from helpers.models import (
    Json,
    Tensors,
    config_json,
    one_line_error,
    quantized,
    same,
    write_folder,
)

import pg_mlx
from pg_mlx import load_model
from pg_mlx.checkpoint.open import open_local
from pg_mlx.errors import InputError, PgMlxError
from pg_mlx.processor import read_resample

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 5000000000\n"


BITSANDBYTES = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


@pytest.mark.parametrize(
    "entry", [BITSANDBYTES, {"load_in_4bit": True}, {"quant_method": "gptq", "bits": 4, "group_size": 128}, {}], ids=str
)
def test_an_entry_that_was_left_behind(
    entry: Json, raw: Json, tensors: Tensors, expected: mx.array, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "float", raw | {"quantization_config": entry}, tensors)
    assert same(logits(folder), expected)
    pg_mlx.convert(folder, tmp_path / "out", need_tokenizer=False, check=False)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_mlx_own_entry_under_its_second_name_is_read(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    raw, packed, floats = quantized(raw, tensors, lambda name, tensor: "embed_tokens" in name, group_size=32)
    raw["quantization_config"] = raw.pop("quantization")
    assert same(
        logits(write_folder(tmp_path / "packed", raw, packed)), logits(write_folder(tmp_path / "f", raw, floats))
    )


PACKED: dict[str, tuple[dict[str, mx.array], str]] = {
    "bitsandbytes, 4 bits": ({".weight": mx.zeros((640, 1), mx.uint8), ".weight.absmax": mx.zeros(20)}, "4 bits"),
    "bitsandbytes, 8 bits": ({".weight": mx.zeros((40, 32), mx.int8), ".SCB": mx.zeros(40)}, "8 bits"),
    "awq": ({".qweight": mx.zeros((8, 8), mx.int32), ".qzeros": mx.zeros((1, 8), mx.int32)}, "GPTQ or AWQ"),
    "compressed": ({".weight_packed": mx.zeros((8, 8), mx.int32)}, "compressed-tensors"),
    "fp8": ({".weight": mx.zeros((40, 32)), ".weight_scale": mx.zeros(1)}, "FP8"),
}


@pytest.mark.parametrize("entry", [BITSANDBYTES, None], ids=["entry", "no entry"])
@pytest.mark.parametrize("kind", PACKED)
def test_packed_by_another_program(kind: str, entry: Json | None, raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    module = "language_model.model.layers.0.mlp.gate_proj"
    arrays, words = PACKED[kind]
    del tensors[f"{module}.weight"]
    tensors |= {module + part: array for part, array in arrays.items()}
    folder = write_folder(tmp_path / "packed", raw | ({"quantization_config": entry} if entry else {}), tensors)
    for opening in (load_model, lambda path: pg_mlx.convert(path, tmp_path / "out", need_tokenizer=False)):
        with one_line_error("is quantized by", words, "original float checkpoint"):
            opening(folder)


@pytest.mark.parametrize(("dtype", "words"), [("F8_E4M3", "FP8"), ("F8_E5M2", "FP8"), ("F64", "float64")])
def test_dtypes_that_mlx_does_not_read_are_named(
    dtype: str, words: str, raw: Json, tensors: Tensors, tmp_path: Path
) -> None:
    path = write_folder(tmp_path / "other", raw, tensors) / "model.safetensors"
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, end = json.loads(content[8 : 8 + size]), 0
    for entry in (header[name] for name in sorted(header) if name != "__metadata__"):
        item = 8 if dtype == "F64" else 1
        start, end = end, end + int(np.prod(entry["shape"])) * item
        entry |= {"dtype": dtype, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))
    with one_line_error(words):
        load_model(path.parent)


OTHERS = {
    "pytorch_model.bin": "save it again in Python",
    "pytorch_model-00001-of-00002.bin": "save it again in Python",
    "model.pth": "save it again in Python",
    "paligemma-q4.gguf": "llama.cpp",
    "zero_to_fp32.py": "zero_to_fp32.py . OTHER",
    "global_step500/": "DeepSpeed",
    "pytorch_model_fsdp_0/": "accelerate merge-weights",
    "model.weights.h5": "KerasHub",
    "model.keras": "KerasHub",
    "flax_model.msgpack": "Flax",
    "_METADATA": "Orbax",
    "checkpoint": "Orbax",
    "checkpoint-500/": "as its last: checkpoint-500",
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("has_config", [True, False])
def test_other_forms_are_named_with_the_way_out(name: str, has_config: bool, tmp_path: Path) -> None:
    if has_config:
        (tmp_path / "config.json").write_text(json.dumps(config_json("gemma")))
    (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(b"x")
    for opening in (load_model, lambda path: pg_mlx.convert(path, tmp_path / "out", need_tokenizer=False)):
        with one_line_error(name.rstrip("/"), OTHERS[name]):
            opening(tmp_path)


@pytest.mark.parametrize("name", ["checkpoint", ".metadata"])
@pytest.mark.parametrize("has_config", [True, False])
def test_a_folder_of_a_common_name_is_of_no_form(name: str, has_config: bool, tmp_path: Path) -> None:
    if has_config:
        (tmp_path / "config.json").write_text(json.dumps(config_json("gemma")))
    (tmp_path / name).mkdir()
    with pytest.raises(InputError) as raised:
        load_model(tmp_path)
    assert re.search(r"has no (weights|config\.json)", str(raised.value))
    assert "Orbax" not in str(raised.value) and "FSDP" not in str(raised.value)


def test_the_last_of_a_run_is_named_and_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    for number in (500, 1000, 90):
        (tmp_path / f"checkpoint-{number}").mkdir()
    (tmp_path / "training_args.bin").write_bytes(b"x")
    with one_line_error("checkpoint-1000"):
        load_model(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"x")
    with one_line_error("x.gguf is a file", "llama.cpp"):
        load_model(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    "name", ["model.safetensors", INDEX, "config.json", "tokenizer.model", "processor_config.json"]
)
def test_pointers_of_git_lfs_are_named_with_the_command(name: str, raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", raw, tensors)
    (folder / name).write_text(POINTER)
    with one_line_error(str(folder / name), "Git LFS", "git lfs pull"):
        load_model(folder)
    (tmp_path / "x.npz").write_text(POINTER)
    with one_line_error("x.npz", "git lfs pull"):
        load_model(tmp_path / "x.npz")


def test_links_to_nothing_and_pipes(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", raw, tensors)
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to("../blob")
    load_model(folder)
    (tmp_path / "blob").unlink()
    with one_line_error("model.safetensors is a link to a file that is gone"):
        load_model(folder)
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with one_line_error():
            load_model(folder)
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    with pytest.raises(PgMlxError):
        load_model(tmp_path / "zero.npz")


def test_numbers_beyond_all_bounds_in_config(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    for key, value in (("rms_norm_eps", 10**400), ("rope_theta", 10**400), ("head_dim", 10**400)):
        changed = json.loads(json.dumps(raw))
        changed["text_config"][key] = value
        with pytest.raises(InputError) as caught:
            load_model(write_folder(tmp_path / "huge", changed, tensors))
        assert key in str(caught.value) and len(str(caught.value)) < 300


def test_what_transformers_5_says_of_pictures(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", raw, tensors)
    assert open_local(folder).resample == "bicubic"
    (folder / "preprocessor_config.json").write_text(json.dumps({"resample": 3}))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "PaliGemmaProcessor"}))
    assert open_local(folder).resample == "bicubic"
    half = [0.5, 0.5, 0.5]
    for entry, words in (
        ({"resample": 2, "image_mean": half, "image_std": half, "rescale_factor": 1 / 255}, ""),
        ({"resample": 2, "image_mean": [0.48, 0.45, 0.4]}, "image_mean"),
        ({"image_std": [0.2, 0.2, 0.2]}, "image_std"),
        ({"resample": 0}, "resample"),
        ({"do_normalize": False}, "do_normalize"),
        ({"rescale_factor": 1}, "rescale_factor"),
        ([], "image_processor"),
    ):
        (folder / "processor_config.json").write_text(json.dumps({"image_processor": entry}))
        if words:
            with one_line_error("processor_config.json", words):
                _ = open_local(folder).resample
        else:
            assert open_local(folder).resample == "bilinear"
            pg_mlx.convert(folder, tmp_path / "out", need_tokenizer=False, check=False)
            assert read_resample(tmp_path / "out" / "preprocessor_config.json") == "bilinear"
