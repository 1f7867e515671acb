"""Checkpoints as other programs leave them: read, or named with the way out."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.commands import tiny_checkpoint
from helpers.models import (
    Json,
    Tensors,
    config_json,
    one_line_error,
    quantized,
    random_tensors,
    same,
    text_logits,
    write_folder,
)
from helpers.paths import CAT, GOLDEN

import pg_mlx
from pg_mlx import load_model
from pg_mlx.checkpoint.hub_names import address, cached_snapshot, repository_of
from pg_mlx.checkpoint.open import open_local
from pg_mlx.checkpoint.validate import validate
from pg_mlx.checkpoint.weight_files import choose_weight_files
from pg_mlx.cli import main
from pg_mlx.errors import InputError, PgMlxError
from pg_mlx.processor import read_resample

INDEX = "model.safetensors.index.json"
EMBEDDING = "language_model.model.embed_tokens"
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 5000000000\n"


@pytest.fixture(params=["gemma", "gemma2"])
def raw(request: pytest.FixtureRequest) -> Json:
    return config_json(request.param)


@pytest.fixture
def tensors(raw: Json) -> Tensors:
    return random_tensors(raw)


@pytest.fixture
def expected(raw: Json, tensors: Tensors, tmp_path: Path) -> mx.array:
    return logits(write_folder(tmp_path / "plain", raw, tensors))


def logits(path: Path) -> mx.array:
    return text_logits(load_model(path, dtype="float32"))


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


# --- several sets of weights ---------------------------------------------------------------------------


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


# --- names -----------------------------------------------------------------------------------------------

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


# --- packed by others ------------------------------------------------------------------------------------

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


# --- other files -----------------------------------------------------------------------------------------

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


# --- how pictures are prepared -----------------------------------------------------------------------------


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


# --- archives ----------------------------------------------------------------------------------------------


def members(family: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{family}_big_vision.npz") as archive:
        return {name.removeprefix("params/"): archive[name] for name in archive.files if name.startswith("params/")}


@pytest.mark.parametrize("root", ["", "params/", "opt/target/"])
@pytest.mark.parametrize("family", ["pg1", "pg2"])
def test_archives_with_the_parameters_anywhere(family: str, root: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, **{root + name: array for name, array in members(family).items()}, step=np.array(3))
    assert same(logits(path), logits(GOLDEN / f"{family}_big_vision.npz"))


@pytest.mark.parametrize(
    ("chosen", "other", "dtype"),
    [
        (np.float32, np.float16, mx.float32),
        (np.float16, np.float16, mx.float16),
        (np.float64, np.float64, mx.float32),
        (np.float64, np.float16, mx.float32),
    ],
)
def test_dtypes_of_archives(chosen: type, other: type, dtype: mx.Dtype, tmp_path: Path) -> None:
    """As the notebook saves them: what was trained in float32, the rest in float16. float64 keeps what float32 can."""
    arrays = members("pg1")
    mixed = {n: array.astype(chosen if n.startswith("llm/layers/attn/") else other) for n, array in arrays.items()}
    np.savez(tmp_path / "x.npz", **mixed)
    assert open_local(tmp_path / "x.npz").dtype == dtype
    pg_mlx.convert(tmp_path / "x.npz", tmp_path / "out", need_tokenizer=False, check=False)
    source, written = open_local(GOLDEN / "pg1_big_vision.npz").source, open_local(tmp_path / "out").source
    name = "language_model.model.layers.1.self_attn.q_proj.weight"
    expected = source.read(name).astype(mx.float16 if chosen is np.float16 else mx.float32)
    assert mx.array_equal(written.read(name).astype(mx.float32), expected.astype(mx.float32))


def test_as_many_key_heads_as_query_heads_and_square_layers(tmp_path: Path) -> None:
    """One qkv_einsum opens; gating is turned as mlp/linear says, also where F is below D."""
    arrays = members("pg1")
    attention = "llm/layers/attn"
    key, value = arrays.pop(f"{attention}/kv_einsum/w").swapaxes(0, 1)
    query = arrays.pop(f"{attention}/q_einsum/w")
    parts = [query, *(part.repeat(query.shape[1], axis=1) for part in (key, value))]
    np.savez(tmp_path / "fused.npz", **arrays, **{f"{attention}/qkv_einsum/w": np.stack(parts, 1)})
    config = open_local(tmp_path / "fused.npz").config.text
    assert config.num_key_value_heads == config.num_attention_heads == query.shape[1]
    assert same(logits(tmp_path / "fused.npz"), logits(tmp_path / "fused.npz"))
    difference = mx.abs(logits(tmp_path / "fused.npz") - logits(GOLDEN / "pg1_big_vision.npz")).max().item()
    assert difference < 1e-4  # the same heads, only repeated

    arrays = members("pg1")
    width = arrays["llm/final_norm/scale"].shape[0]
    gating, linear = "llm/layers/mlp/gating_einsum", "llm/layers/mlp/linear"
    narrow = width // 2
    arrays[gating], arrays[linear] = arrays[gating][..., :narrow], arrays[linear][:, :narrow]
    np.savez(tmp_path / "narrow.npz", **arrays)
    np.savez(tmp_path / "turned.npz", **arrays | {gating: np.ascontiguousarray(arrays[gating].swapaxes(-1, -2))})
    assert open_local(tmp_path / "turned.npz").config.text.intermediate_size == narrow
    assert same(logits(tmp_path / "narrow.npz"), logits(tmp_path / "turned.npz"))


def test_a_folder_with_archives(tmp_path: Path) -> None:
    """macOS' side files and the mask decoder do not count; of several one must be named."""
    np.savez(tmp_path / "a.npz", **members("pg1"))
    for name in ("._a.npz", "vae-oid.npz"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "paligemma_tokenizer.model").write_bytes(b"vocabulary")
    opened = open_local(tmp_path)
    assert opened.tokenizer == tmp_path / "paligemma_tokenizer.model"
    assert open_local(tmp_path / "a.npz").tokenizer == opened.tokenizer
    (tmp_path / "b.npz").write_bytes(b"x")
    with one_line_error("several archives, a.npz, b.npz"):
        open_local(tmp_path)


def npy(head: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


@pytest.mark.parametrize(
    "head",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': '''",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': " + b"(" * 3000 + b")" * 3000 + b"}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1, " * 9 + b"), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 3000 + b",), }",
        b"{'descr': [], 'fortran_order': False, 'shape': (1,), }",
        b"",
    ],
    ids=lambda head: repr(head[40:60]),
)
def test_heads_of_members_that_are_none(head: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("params/img/pos_embedding.npy", npy(head))
    with one_line_error("not a sound .npz archive"):
        load_model(tmp_path / "x.npz")


def test_no_room_to_unpack_is_not_the_targets_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "x.npz", **members("pg1"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(PgMlxError, match=r"x\.npz is compressed and cannot be unpacked .*No space.*TMPDIR"):
        pg_mlx.convert(tmp_path / "x.npz", tmp_path / "out", need_tokenizer=False, check=False)


# --- names of the hub ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("https://huggingface.co/google/paligemma2-3b-pt-224", ("google/paligemma2-3b-pt-224", None)),
        ("http://huggingface.co/a/b/", ("a/b", None)),
        ("hf.co/a/b", ("a/b", None)),
        ("huggingface.co/a/b/tree/float16", ("a/b", "float16")),
        ("https://huggingface.co/a/b/blob/main/config.json?x=1#y", ("a/b", "main")),
        ("https://huggingface.co/a/b/resolve/main/x.npz", ("a/b/x.npz", "main")),
        ("hf://a/b", ("a/b", None)),
        ("hf://a/b@v1", ("a/b", "v1")),
        ("a/b", ("a/b", None)),
        ("a/b@v1.0", ("a/b", "v1.0")),
        ("./a/b@v1", ("./a/b@v1", None)),
        ("a/b@", ("a/b@", None)),
        ("./a/b", ("./a/b", None)),
        ("/a/b", ("/a/b", None)),
    ],
)
def test_addresses(
    given: str, expected: tuple[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert address(given) == expected
    assert address(given, "mine") == (expected[0], "mine")
    Path("hf.co/a/b").mkdir(parents=True)
    assert address("hf.co/a/b") == ("hf.co/a/b", None)


def test_pages_that_are_no_models_and_files_of_repositories() -> None:
    with one_line_error("not the page of a model"):
        address("https://huggingface.co/datasets/a/b")
    assert repository_of("a/b/x.npz") == "a/b"
    assert (
        repository_of("./b/x.npz") is None and repository_of("b/x.npz") is None and repository_of("/a/b/x.npz") is None
    )


def test_folders_of_the_cache(raw: Json, tensors: Tensors, expected: mx.array, tmp_path: Path) -> None:
    repo = tmp_path / "models--a--b"
    for name in ("blobs", "refs"):
        (repo / name).mkdir(parents=True)
    write_folder(repo / "snapshots" / ("0" * 40), raw, tensors)
    for path in (repo, repo / "snapshots"):
        assert same(logits(path), expected)
    (repo / "snapshots" / ("1" * 40)).mkdir()
    with one_line_error("2 snapshots"):
        load_model(repo)
    (repo / "refs" / "main").write_text("0" * 40)
    assert cached_snapshot(repo).name == "0" * 40 and same(logits(repo), expected)


# --- numbers that are none -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", [f"{EMBEDDING}.weight", "language_model.model.norm.weight", "multi_modal_projector.linear.bias"]
)
def test_weights_that_are_no_numbers_are_not_converted(
    name: str, value: float, raw: Json, tensors: Tensors, tmp_path: Path
) -> None:
    tensors[name][0] = value
    folder = write_folder(tmp_path / "model", raw, tensors)
    options: list[Callable[[Path], object]] = [
        lambda target: pg_mlx.convert(folder, target, need_tokenizer=False, check=False),
        lambda target: pg_mlx.convert(folder, target, q_bits=8, q_group_size=32, need_tokenizer=False, check=False),
    ]
    for convert in options:
        with one_line_error(name, "NaN or infinite"):
            convert(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_too_large_for_float16_are_named(raw: Json, tensors: Tensors, tmp_path: Path) -> None:
    tensors[f"{EMBEDDING}.weight"][3, 3] = 1e6
    folder = write_folder(tmp_path / "model", raw, tensors)
    with one_line_error(EMBEDDING, "too large for float16"):
        pg_mlx.convert(folder, tmp_path / "out", dtype="float16", need_tokenizer=False, check=False)
    pg_mlx.convert(folder, tmp_path / "out", dtype="bfloat16", need_tokenizer=False, check=False)


def test_an_answer_of_nan_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not an empty answer. In a batch only of the row that has it."""
    folder = tiny_checkpoint(tmp_path / "model")
    path = next(folder.glob("*.safetensors"))
    weights = dict(mx.load(str(path)))
    name = next(key for key in weights if key.endswith("norm.weight") and "vision" not in key)
    weights[name] = mx.full(weights[name].shape, float("nan")).astype(weights[name].dtype)
    mx.save_safetensors(str(path), weights)
    assert main(["generate", "--model", str(folder), "--image", str(CAT), "--prompt", "caption en"]) == 1
    out, errors = capsys.readouterr()
    assert out == "" and "computes no numbers (NaN)" in errors and len(errors.splitlines()) == 1
