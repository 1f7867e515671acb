"""Conversion into few bits, between packings, and back."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from helpers.checkpoints import PACKINGS, assert_same, config_of, matrices, packings, read_all, stored
from helpers.conversions import convert, weights_only
from helpers.memory import growth
from helpers.models import (
    Tensors,
    config_json,
    distance,
    load_packed,
    model_of,
    random_tensors,
    same,
    text_logits,
    wide_config_json,
    write_folder,
)
from helpers.packing import FOUR, PARTS, TEXT, TOLERANCE, padded

from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.checkpoint.validate import validate
from pg_mlx.conversion import choose, pipeline, weights
from pg_mlx.files.json import read_json
from pg_mlx.quantization import Quantization


@pytest.fixture(scope="module")
def eight(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in 8 bits."""
    folder = tmp_path_factory.mktemp("models") / "eight"
    convert(tiny, folder, q_bits=8)
    return folder


def packed(tensors: Tensors, folder: Path, q: Quantization) -> Tensors:
    """What `folder` must hold, made from a source's tensors by MLX itself."""
    settings = dict(group_size=q.group_size, bits=q.bits, mode=q.mode)
    result = {name: padded(name, tensor) for name, tensor in tensors.items()}
    for module in matrices(folder):
        arrays = mx.quantize(result[f"{module}.weight"], **settings)
        result |= {f"{module}.{part}": a for part, a in zip(PARTS, arrays, strict=False)}
    return result


def unpacked(tensors: Tensors, how: dict[str, Quantization | None]) -> Tensors:
    """The float32 that packed tensors stand for. MLX computes in the dtype of the scales."""
    result = {name: tensor for name, tensor in tensors.items() if not name.endswith((".scales", ".biases"))}
    for module, q in how.items():
        if q:
            arrays = [tensors[f"{module}.{part}"] for part in PARTS if f"{module}.{part}" in tensors]
            arrays[1:] = [a.astype(mx.float32) if a.dtype == mx.bfloat16 else a for a in arrays[1:]]
            settings = dict(group_size=q.group_size, bits=q.bits, mode=q.mode)
            result[f"{module}.weight"] = mx.dequantize(*arrays, **settings, dtype=mx.float32)
    return result


@pytest.mark.parametrize("q", PACKINGS, ids=lambda q: f"{q.mode}-{q.bits}-{q.group_size}")
def test_every_packing_is_mlxs_own_and_computes_what_it_stands_for(q: Quantization, tiny: Path, tmp_path: Path):
    """Padded or not: the model built from the unpacked floats has SigLIP's MLP cut back to 300."""
    out = tmp_path / "out"
    report = weights_only(tiny, out, q_bits=q.bits, q_group_size=q.group_size, q_mode=q.mode)
    assert report.left_float == []
    assert set(packings(out).values()) == {q}
    entry = dict(group_size=q.group_size, bits=q.bits) | ({} if q.mode == "affine" else {"mode": q.mode})
    raw = read_json(out / "config.json")
    assert raw["quantization"] == raw["quantization_config"] == entry
    assert raw["vision_config"]["intermediate_size"] == 384

    source, written = read_all(SafetensorsFolder(tiny)), stored(out)
    assert_same(written, packed(source, out, q))
    floats = unpacked(written, packings(out))
    for name, tensor in source.items():
        if ".mlp.fc" in name and tensor.shape != floats[name].shape:
            rows, *columns = tensor.shape
            floats[name] = floats[name][:rows, : columns[0]] if columns else floats[name][:rows]
    plain = model_of(read_json(tiny / "config.json"), floats)
    worst = distance(text_logits(load_packed(out, dtype="float32")), text_logits(plain))
    print(f"off by {worst:.1e} at most")
    assert worst <= TOLERANCE


def test_slices_change_nothing(tiny: Path, eight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Weights packed, unpacked and padded seven rows at a time are those packed at once."""
    ways = {"pack": (tiny, dict(q_bits=4)), "unpack": (eight, dict(dequantize=True)), "both": (eight, dict(q_bits=4))}
    for name, (source, options) in ways.items():
        convert(source, tmp_path / f"{name} whole", **options)
    monkeypatch.setattr(weights, "CHUNK_VALUES", 7 * 128)
    for name, (source, options) in ways.items():
        convert(source, tmp_path / f"{name} sliced", **options)
        assert_same(stored(tmp_path / f"{name} sliced"), stored(tmp_path / f"{name} whole"))


@pytest.mark.parametrize(("dtype", "scales"), [(None, "bfloat16"), ("float32", "float32"), ("float16", "float16")])
def test_a_float32_source_is_packed_as_bfloat16_unless_told(dtype: str | None, scales: str, tmp_path: Path):
    raw = wide_config_json("gemma2")
    tensors = random_tensors(raw)
    source = write_folder(tmp_path / "source", raw, tensors)
    weights_only(source, tmp_path / "out", q_bits=4, dtype=dtype)
    wanted = getattr(mx, scales)
    written = stored(tmp_path / "out")
    assert {tensor.dtype for tensor in written.values()} == {wanted, mx.uint32}
    row = f"{TEXT}.layers.1.self_attn.o_proj"
    expected = mx.quantize(tensors[f"{row}.weight"].astype(wanted), group_size=64, bits=4)
    assert all(same(written[f"{row}.{part}"], a) for part, a in zip(PARTS, expected, strict=True))
    assert read_json(tmp_path / "out" / "config.json")["torch_dtype"] == scales


@pytest.mark.parametrize(
    "options", [{}, {"q_bits": 8}, {"q_recipe": "quality"}], ids=["no options", "same bits", "recipe"]
)
def test_a_packed_folder_at_its_own_setting_stays_as_it_is(options: dict, eight: Path, tmp_path: Path):
    convert(eight, tmp_path / "out", **options)
    for name in ("model-00001-of-00001.safetensors", "config.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (eight / name).read_bytes()


@pytest.mark.parametrize("options", [{"q_recipe": "balanced"}, {"q_mode": "mxfp4"}, {"q_bits": 3, "q_group_size": 32}])
def test_mixed_and_floating_packings_are_copied_bit_by_bit(options: dict, tiny: Path, tmp_path: Path):
    convert(tiny, tmp_path / "first", **options)
    convert(tmp_path / "first", tmp_path / "copy")
    convert(tmp_path / "first", tmp_path / "again", **options)
    for folder in ("copy", "again"):
        assert_same(stored(tmp_path / folder), stored(tmp_path / "first"))
        assert (tmp_path / folder / "config.json").read_bytes() == (tmp_path / "first" / "config.json").read_bytes()
    assert validate(tmp_path / "copy") == []


def test_eight_bits_to_four(eight: Path, tmp_path: Path):
    convert(eight, tmp_path / "out", q_bits=4)
    floats = {name: t.astype(mx.bfloat16) for name, t in unpacked(stored(eight), packings(eight)).items()}
    settings = dict(group_size=64, bits=4)
    written = stored(tmp_path / "out")
    for module in matrices(eight):
        arrays = mx.quantize(floats[f"{module}.weight"], **settings)
        for part, array in zip(PARTS, arrays, strict=True):
            assert same(written[f"{module}.{part}"], array), module
    assert config_of(tmp_path / "out").quantization == settings
    assert set(packings(tmp_path / "out").values()) == {FOUR}


@pytest.mark.parametrize("options", [{"q_bits": 8}, {"q_recipe": "balanced"}, {"q_mode": "nvfp4"}])
def test_unpacking_gives_the_floats_it_stood_for(options: dict, tiny: Path, tmp_path: Path):
    convert(tiny, tmp_path / "packed", **options)
    convert(tmp_path / "packed", tmp_path / "float", dequantize=True)
    floats = unpacked(stored(tmp_path / "packed"), packings(tmp_path / "packed"))
    assert_same(stored(tmp_path / "float"), {name: tensor.astype(mx.bfloat16) for name, tensor in floats.items()})
    assert "quantization" not in read_json(tmp_path / "float" / "config.json")
    assert validate(tmp_path / "float") == []


@pytest.mark.parametrize("packing", [{}, {"q_bits": 4}, {"q_mode": "nvfp4"}, {"dtype": "float16"}, "unpack"])
def test_memory_is_that_of_a_tensor_not_of_the_model(
    packing: dict | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Six layers of width 512: 52 MB, of which the largest tensor is 2 MB."""
    monkeypatch.setattr(weights, "CHUNK_VALUES", 1 << 15)
    text = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=4, head_dim=128)
    raw = config_json("gemma2", text)
    source = write_folder(tmp_path / "source", raw, {k: v.astype(mx.bfloat16) for k, v in random_tensors(raw).items()})
    options = packing if isinstance(packing, dict) else {}
    if packing == "unpack":
        weights_only(source, tmp_path / "packed", q_bits=8)
        source, options = tmp_path / "packed", {"dequantize": True}
    recipe = choose.choose_recipe(False, options.get("q_bits"), None, options.get("q_mode"), None, None)
    job = pipeline.Conversion(
        source, recipe, dequantize="dequantize" in options, dtype=options.get("dtype"), need_tokenizer=False
    )
    with growth() as grown:
        peak = job.run(tmp_path / "out", check=False).peak_memory_bytes - grown.before
    promised, model = job.expected_peak(), job.checkpoint.num_bytes
    print(f"peak {peak / 1e6:.1f} MB, at most {promised / 1e6:.1f} were promised; the model has {model / 1e6:.0f}")
    assert peak <= promised <= model / 3
