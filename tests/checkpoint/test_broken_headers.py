"""Headers of safetensors that lie, or are none."""

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.headers import KERNEL, NORM, header_of, write_header
from helpers.models import Json, one_line_error

from pg_mlx import load_model

QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"


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
