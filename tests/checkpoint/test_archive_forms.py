"""The original archives as notebooks and people save them."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.forms import logits
from helpers.models import (
    one_line_error,
    same,
)
from helpers.paths import GOLDEN

import pg_mlx
from pg_mlx import load_model
from pg_mlx.checkpoint.open import open_local
from pg_mlx.errors import PgMlxError


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
