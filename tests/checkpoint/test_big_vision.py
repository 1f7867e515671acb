"""The original .npz archives: the same tensors, bit by bit, and so the same logits."""

from __future__ import annotations

import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers.paths import GOLDEN

from pg_mlx.checkpoint.big_vision import BigVisionArchive
from pg_mlx.checkpoint.load import build
from pg_mlx.checkpoint.open import Checkpoint
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.config import PaliGemmaConfig
from pg_mlx.errors import InputError
from pg_mlx.files.json import read_json


def members(family: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{family}_big_vision.npz") as archive:
        return {name: archive[name] for name in archive.files}


@pytest.mark.parametrize("family", ["pg1", "pg2"])
@pytest.mark.parametrize("stored", [False, True], ids=["compressed", "stored"])
def test_tensors_equal_those_of_hugging_face(family: str, stored: bool, tmp_path: Path):
    path = GOLDEN / f"{family}_big_vision.npz"
    if stored:  # as the published archives are
        path = tmp_path / "stored.npz"
        np.savez(path, **members(family))
    archive, folder = BigVisionArchive(path), SafetensorsFolder(GOLDEN / f"{family}_classic")
    assert archive.shapes == folder.shapes
    for name in archive.shapes:
        assert mx.array_equal(archive.read(name).astype(mx.float32), folder.read(name)), name


@pytest.mark.parametrize("family", ["pg1", "pg2"])
def test_logits_equal_the_golden_ones(family: str):
    archive = BigVisionArchive(GOLDEN / f"{family}_big_vision.npz")
    model = build(Checkpoint.of(archive, read_json(GOLDEN / f"{family}_classic" / "config.json")), "float32")
    golden = mx.load(str(GOLDEN / f"{family}_batch1.safetensors"))
    features = model.encode_image(golden["pixel_values"].transpose(0, 2, 3, 1))
    logits = model.logits(features, golden["input_ids"][:, features.shape[1] :])
    difference = mx.abs(logits - golden["prefill_logits"][:, features.shape[1] :]).max().item()
    print(f"off by {difference:.1e} at most")
    assert difference <= 1e-4


@pytest.mark.parametrize("family", ["pg1", "pg2"])
def test_the_config_is_read_off_the_shapes(family: str):
    told = PaliGemmaConfig.from_dict(BigVisionArchive(GOLDEN / f"{family}_big_vision.npz").config())
    true = PaliGemmaConfig.from_dict(read_json(GOLDEN / f"{family}_classic" / "config.json"))
    assert told.vision == true.vision
    for field in ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(told.text, field) == getattr(true.text, field)
    assert (told.text.head_dim, told.text.num_key_value_heads) == (true.text.head_dim, true.text.num_key_value_heads)


def test_layers_that_are_not_stacked_and_fused_and_flipped_variants(tmp_path: Path):
    """Non-scanned ViTs, one qkv_einsum for as many key heads, gating stored as [F, D], and optimizer state."""
    arrays = members("pg1")
    expected = BigVisionArchive(GOLDEN / "pg1_big_vision.npz")
    root = "params/img/Transformer/encoderblock"
    for name in [name for name in arrays if name.startswith(f"{root}/")]:
        for layer, array in enumerate(arrays.pop(name)):
            arrays[name.replace(root, f"{root}_{layer}")] = array
    gating = "params/llm/layers/mlp/gating_einsum"
    arrays[gating] = np.ascontiguousarray(arrays[gating].swapaxes(-1, -2))
    arrays["opt/0/mu/params/img/head/kernel"] = np.zeros((3, 3))
    np.savez(tmp_path / "variant.npz", **arrays)
    variant = BigVisionArchive(tmp_path / "variant.npz")
    assert variant.shapes == expected.shapes
    assert all(mx.array_equal(variant.read(name), expected.read(name)) for name in expected.shapes)

    attention = "params/llm/layers/attn"
    key, value = arrays.pop(f"{attention}/kv_einsum/w").swapaxes(0, 1)  # [L, 1, D, H] each
    query = arrays.pop(f"{attention}/q_einsum/w")
    heads = query.shape[1]
    arrays[f"{attention}/qkv_einsum/w"] = np.stack([query, *(part.repeat(heads, axis=1) for part in (key, value))], 1)
    np.savez(tmp_path / "fused.npz", **arrays)
    fused = BigVisionArchive(tmp_path / "fused.npz")
    name = "language_model.model.layers.2.self_attn.{}_proj.weight"
    assert mx.array_equal(fused.read(name.format("q")), expected.read(name.format("q")))
    assert mx.array_equal(fused.read(name.format("v")), mx.tile(expected.read(name.format("v")), (heads, 1)))


def one_line(path: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        BigVisionArchive(path)
    assert "\n" not in str(caught.value) and all(word in str(caught.value) for word in words), caught.value


def test_archives_that_are_none(tmp_path: Path):
    whole = (GOLDEN / "pg1_big_vision.npz").read_bytes()
    path = tmp_path / "broken.npz"
    for size in (0, 1000, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        one_line(path, "broken.npz")
    one_line(tmp_path / "missing.npz", "missing.npz")
    np.savez(path, weights=np.zeros(3))
    one_line(path, "not a PaliGemma archive")
    np.savez(path, **members("pg1"), **{"params/extra": np.array([{}], dtype=object)})
    one_line(path, "params/extra", "object")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("params/img/pos_embedding.npy", b"\x93NUMPY\x01\x00 but not really")
    one_line(path, "broken.npz")
    arrays = members("pg1")
    del arrays["params/llm/layers/mlp/linear"]
    np.savez(path, **arrays)
    one_line(path, "mlp/linear")
