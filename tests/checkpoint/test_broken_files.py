"""A checkpoint folder that is broken, incomplete or hostile gives one InputError of one line."""

import json
import os
import struct
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.headers import KERNEL, NORM, header_of, write_header
from helpers.models import Json, config_json, one_line_error, random_tensors, write_folder

from pg_mlx import load_model
from pg_mlx.checkpoint.tensors import evaluate_read
from pg_mlx.errors import PgMlxError


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


def test_weights_that_become_shorter_while_they_are_read(folder: Path, weights: Path) -> None:
    """Their header was whole when it was checked, and MLX reads the rest only when it is needed."""

    def progress(done: int, of: int) -> None:
        if done == of // 2:
            os.truncate(weights, len(header_bytes))

    size = struct.unpack("<Q", weights.read_bytes()[:8])[0]
    header_bytes = weights.read_bytes()[: 8 + size]
    with pytest.raises(PgMlxError, match=r"cannot be read: its file has been changed or cut off meanwhile$") as raised:
        load_model(folder, progress=progress)
    assert "\n" not in str(raised.value)


def test_a_failure_that_is_no_files_is_not_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[metal::malloc] no memory")

    monkeypatch.setattr(mx, "eval", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        evaluate_read("a", [])


def test_weights_cut_at_the_end_of_the_header(folder: Path, weights: Path) -> None:
    header, _ = header_of(weights)
    write_header(weights, header, b"")
    with one_line_error("model.safetensors", "truncated"):
        load_model(folder)


@pytest.mark.parametrize("shape", [(), (24,), (24, 588), (0, 14, 14, 3), (24, 0, 14, 3), (24, 14, 14, 4)], ids=str)
@pytest.mark.parametrize("vision", ["patch size given", "patch size missing"])
def test_patch_kernels_of_other_shapes(tmp_path: Path, shape: tuple[int, ...], vision: str) -> None:
    raw = config_json("gemma", vision={"patch_size": 14} if vision == "patch size given" else {})
    tensors = random_tensors(raw) | {KERNEL: mx.zeros(shape)}
    with one_line_error():
        load_model(write_folder(tmp_path, raw, tensors))


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
