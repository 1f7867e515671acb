"""A checkpoint folder that is broken, incomplete or hostile gives one InputError of one line."""

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from helpers.models import Json, config_json, one_line_error, random_tensors, write_folder

from pg_mlx import load_model

NORM = "language_model.model.norm.weight"
KERNEL = "vision_tower.vision_model.embeddings.patch_embedding.weight"
QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw = config_json("gemma")
    return write_folder(tmp_path / "checkpoint", raw, random_tensors(raw))


@pytest.fixture
def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def header_of(path: Path) -> tuple[Json, bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(path: Path, header: Any, data: bytes) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def test_the_folder_is_sound(folder: Path, weights: Path) -> None:
    """And so it is after its header was read and written: the tests below break it only where they say."""
    write_header(weights, *header_of(weights))
    load_model(folder)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 2000, -20_000, -4, -1])
def test_truncated_weights(folder: Path, weights: Path, size: int) -> None:
    """Within the length, within the header, and within the data."""
    weights.write_bytes(weights.read_bytes()[:size])
    with one_line_error("model.safetensors", "truncated"):
        load_model(folder)


def test_weights_cut_at_the_end_of_the_header(folder: Path, weights: Path) -> None:
    header, _ = header_of(weights)
    write_header(weights, header, b"")
    with one_line_error("model.safetensors", "truncated"):
        load_model(folder)


@pytest.mark.parametrize("length", [2**63, 2**40, 2**64 - 1, 5_000_000])
def test_a_header_length_beyond_the_file(folder: Path, weights: Path, length: int) -> None:
    weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
    with one_line_error("model.safetensors", "safetensors"):
        load_model(folder)


@pytest.mark.parametrize("header", [b"", b"{", b"not json", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":1}'],
                         ids=lambda header: repr(header[:8]))  # fmt: skip
def test_a_header_that_is_no_header(folder: Path, weights: Path, header: bytes) -> None:
    write_header(weights, header, b"")
    with one_line_error("model.safetensors"):
        load_model(folder)


def lie(key: str, value: Any) -> Callable[[Json], None]:
    return lambda entry: entry.__setitem__(key, value)


def shift_by(count: int) -> Callable[[Json], None]:
    return lambda entry: entry.update(data_offsets=[offset + count for offset in entry["data_offsets"]])


LIES = {
    "offsets beyond the file": shift_by(10**9),
    "negative offsets": shift_by(-(10**9)),
    "backward offsets": lambda entry: entry["data_offsets"].reverse(),
    "too few bytes": lambda entry: entry["data_offsets"].__setitem__(1, entry["data_offsets"][1] - 1),
    "three offsets": lie("data_offsets", [0, 128, 256]),
    "offsets in a string": lie("data_offsets", "ab"),
    "no offsets": lambda entry: entry.pop("data_offsets"),
    "fractional offsets": lie("data_offsets", [0.0, 128.0]),
    "another shape": lie("shape", [33]),
    "negative shape": lie("shape", [-4, -8]),
    "boolean shape": lie("shape", [True]),
    "shape in a string": lie("shape", "32"),
    "no shape": lambda entry: entry.pop("shape"),
    "null shape": lie("shape", None),
    "unknown dtype": lie("dtype", "F8_E4M3"),
    "dtype in a list": lie("dtype", ["F32"]),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies(folder: Path, weights: Path, name: str) -> None:
    header, data = header_of(weights)
    LIES[name](header[NORM])
    write_header(weights, header, data)
    with one_line_error("model.safetensors", NORM):
        load_model(folder)


@pytest.mark.parametrize("entry", [None, 1, "F32", []], ids=repr)
def test_an_entry_of_another_kind(folder: Path, weights: Path, entry: Any) -> None:
    header, data = header_of(weights)
    write_header(weights, header | {NORM: entry}, data)
    with one_line_error("model.safetensors", NORM):
        load_model(folder)


@pytest.mark.parametrize("metadata", [[1], "x", {"format": 3}, None], ids=repr)
def test_strange_metadata_does_no_harm_or_is_an_error(folder: Path, weights: Path, metadata: Any) -> None:
    header, data = header_of(weights)
    write_header(weights, header | {"__metadata__": metadata}, data)
    try:
        load_model(folder)
    except ValueError:
        with one_line_error("model.safetensors"):
            load_model(folder)


@pytest.mark.parametrize("name", [QUERY, NORM, "language_model.model.embed_tokens.weight", KERNEL])
@pytest.mark.parametrize("dtype", ["U32", "I32"])
def test_integers_where_floats_belong(folder: Path, weights: Path, name: str, dtype: str) -> None:
    header, data = header_of(weights)
    header[name]["dtype"] = dtype
    write_header(weights, header, data)
    with one_line_error(name):
        load_model(folder)


@pytest.mark.parametrize("shape", [(), (24,), (24, 588), (0, 14, 14, 3), (24, 0, 14, 3), (24, 14, 14, 4)], ids=str)
@pytest.mark.parametrize("vision", ["patch size given", "patch size missing"])
def test_patch_kernels_of_other_shapes(tmp_path: Path, shape: tuple[int, ...], vision: str) -> None:
    raw = config_json("gemma", vision={"patch_size": 14} if vision == "patch size given" else {})
    tensors = random_tensors(raw) | {KERNEL: mx.zeros(shape)}
    with one_line_error():
        load_model(write_folder(tmp_path, raw, tensors))


# --- several files ----------------------------------------------------------------------------------


def split(folder: Path, weights: Path) -> tuple[Path, Path, Json]:
    """The weights in two shards with an index, which is returned too."""
    tensors = mx.load(str(weights))
    shards = [folder / f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    mx.save_safetensors(str(shards[0]), {NORM: tensors.pop(NORM)})
    mx.save_safetensors(str(shards[1]), tensors)
    weights.unlink()
    index = {"weight_map": dict.fromkeys(tensors, shards[1].name) | {NORM: shards[0].name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return shards[0], shards[1], index


def test_a_missing_shard(folder: Path, weights: Path) -> None:
    first, _, _ = split(folder, weights)
    load_model(folder)
    first.unlink()
    with one_line_error(first.name, "1 of 2"):
        load_model(folder)
    (folder / "model.safetensors.index.json").unlink()
    with one_line_error(first.name, "1 of 2"):
        load_model(folder)


def test_a_truncated_shard(folder: Path, weights: Path) -> None:
    _, second, _ = split(folder, weights)
    second.write_bytes(second.read_bytes()[:-1])
    with one_line_error(second.name, "truncated"):
        load_model(folder)


@pytest.mark.parametrize("alias", [NORM, "model.language_model.norm.weight"])
def test_a_tensor_in_two_shards(folder: Path, weights: Path, alias: str) -> None:
    """Also where the shards use the names of different layouts."""
    first, second, _ = split(folder, weights)
    mx.save_safetensors(str(second), dict(mx.load(str(second))) | {alias: mx.zeros(32)})
    with one_line_error(NORM, "twice", first.name, second.name):
        load_model(folder)


@pytest.mark.parametrize("outside", ["../other.safetensors", "sub/other.safetensors", "/etc/passwd", "..", "", "a\nb"])
def test_an_index_that_names_files_outside(folder: Path, weights: Path, outside: str) -> None:
    """Also where a sound shard stands there."""
    first, _, index = split(folder, weights)
    (folder / "sub").mkdir()
    for place in (folder.parent, folder / "sub"):
        (place / "other.safetensors").write_bytes(first.read_bytes())
    index["weight_map"][NORM] = outside
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with one_line_error(str(folder)):
        load_model(folder)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": 5}',
                                   '{"weight_map": {"a": null}}', '{"weight_map": {"a": {}}}'])  # fmt: skip
def test_an_index_that_is_no_index(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    with one_line_error(str(folder)):
        load_model(folder)


# --- what else can be missing -----------------------------------------------------------------------


def test_no_such_folder_or_no_folder(folder: Path, weights: Path) -> None:
    for path in (folder / "nothing", weights, folder.parent):
        with one_line_error(str(path)):
            load_model(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[" * 100_000, b"[]", b'"paligemma"', b"null", b"NaN"],
                         ids=lambda content: repr(content[:8]))  # fmt: skip
def test_config_that_is_no_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with one_line_error("config.json"):
        load_model(folder)


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with one_line_error(str(folder), "config.json"):
        load_model(folder)


def test_no_weights(folder: Path, weights: Path) -> None:
    weights.unlink()
    with one_line_error(str(folder), "no weights"):
        load_model(folder)


@pytest.mark.parametrize("other", ["pytorch_model.bin", "paligemma.npz", "paligemma.gguf"])
def test_weights_of_another_format_are_named(folder: Path, weights: Path, other: str) -> None:
    weights.rename(folder / other)
    with one_line_error(other, "not a sound .npz archive" if other.endswith(".npz") else "no weights"):
        load_model(folder)


# --- headers that would take much memory or time -----------------------------------------------------


def reject_quickly(folder: Path, *words: str) -> None:
    begin = time.perf_counter()
    with one_line_error("model.safetensors", *words):
        load_model(folder)
    assert time.perf_counter() - begin < 5


def test_tensors_on_top_of_each_other_or_apart(folder: Path, weights: Path) -> None:
    header, data = header_of(weights)
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    first, second = sorted(entries, key=lambda entry: entry["data_offsets"])[:2]
    before, size = list(second["data_offsets"]), second["data_offsets"][1] - second["data_offsets"][0]
    second["data_offsets"] = [first["data_offsets"][0], first["data_offsets"][0] + size]
    write_header(weights, header, data)
    reject_quickly(folder, "damaged")
    second["data_offsets"] = before
    for entry in entries:
        if entry["data_offsets"][0] >= before[0]:
            entry["data_offsets"] = [offset + 64 for offset in entry["data_offsets"]]
    write_header(weights, header, data + bytes(64))
    reject_quickly(folder, "leaves 64 bytes unused")
    write_header(weights, header_of(weights)[0] | {"zz": {"dtype": "U8", "shape": [0], "data_offsets": [7, 7]}}, data)
    reject_quickly(folder)


def test_bytes_behind_the_last_tensor(folder: Path, weights: Path) -> None:
    weights.write_bytes(weights.read_bytes() + b"hidden")
    reject_quickly(folder, "6 bytes behind the last tensor")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[' + b",".join([b"9" * 4000] * 1000) + b'],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[9223372036854775807,9223372036854775807,2],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[9223372036854775808,0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[' + b",".join([b"1"] * 9) + b'],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a":[' + b"[]," * (3 << 20) + b"[]]}",
        b'{"' + b"a." * (4 << 20) + b'":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"' + b"a." * (3 << 20) + b'norm.weight":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    ],
    ids=["long number", "long numbers", "product", "2^63", "rank 9", "twice", "lists", "long name", "long norm"],
)
def test_headers_without_measure(header: bytes, folder: Path, weights: Path) -> None:
    write_header(weights, header, b"\0")
    begin = time.perf_counter()
    with one_line_error():
        load_model(folder)
    assert time.perf_counter() - begin < 5
