"""Packed weights compute what the floats they stand for compute, and every published packing loads."""

import copy
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.models import (
    FAMILIES,
    Json,
    Tensors,
    distance,
    greedy,
    load_packed,
    model_of,
    one_line_error,
    pictures,
    quantized,
    random_ids,
    random_tensors,
    text_logits,
    wide_config_json,
    write_folder,
)

from pg_mlx import PaliGemma
from pg_mlx.linear import Embedding, Linear, Parallel
from pg_mlx.quantization import Quantization, pad_columns, pad_rows

TOLERANCE = 1e-4
"""Both sides multiply the same numbers in float32, but sum them in another order, in 128 to 256 columns a product."""

TEXT_ROW = "language_model.model.layers.0.self_attn"
MODES = [
    *(Quantization(bits, group_size) for bits in (2, 3, 4, 5, 6, 8) for group_size in (32, 64, 128)),
    *(Quantization(4, 32, "mxfp4"), Quantization(4, 16, "nvfp4"), Quantization(8, 32, "mxfp8")),
]


def name_of(packing: Quantization) -> str:
    return f"{packing.mode}-{packing.bits}-{packing.group_size}"


def text_only(module: str, weight: mx.array) -> bool:
    return module.startswith("language_model")


def decoded(model: PaliGemma, rows: int = 2) -> mx.array:
    """One token at a time: few input rows, so the packed product is used on the CPU too."""
    return greedy(model, pictures(model, rows), random_ids(rows, 5), 4)[1]


def agree(first: PaliGemma, second: PaliGemma) -> None:
    assert distance(text_logits(first), text_logits(second)) <= TOLERANCE
    assert distance(decoded(first), decoded(second)) <= TOLERANCE


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_looked_up_row_has_the_dtype_of_the_table(bits: int) -> None:
    """With bfloat16 scales a row is rounded twice; all else that is unpacked into float32 is computed in float32."""
    packing = Quantization(bits, 64)
    arrays = packing.pack(mx.random.normal((7, 128), key=mx.random.key(bits)).astype(mx.bfloat16))
    wide = {name: array if name == "weight" else array.astype(mx.float32) for name, array in arrays.items()}
    ids = mx.array([[5, 0, 5]])
    exact = packing.unpack(wide)
    for own, dtype, error in ((arrays, mx.bfloat16, 2**-7), (wide, mx.float32, 0)):
        table = Embedding(7, 128, packing)
        for name, array in own.items():
            table[name] = array
        assert table(ids).dtype == dtype
        assert mx.abs(table(ids).astype(mx.float32) - exact[ids]).max() <= error * mx.abs(exact).max()
        assert mx.array_equal(table.dequantized(mx.float32), exact)


@pytest.mark.parametrize("packing", MODES, ids=name_of)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_dequantized(family: str, packing: Quantization) -> None:
    raw = wide_config_json(family)
    settings = (packing.bits, packing.group_size, packing.mode)
    packed_raw, packed, floats = quantized(raw, random_tensors(raw), text_only, *settings)
    model = model_of(packed_raw, packed)
    assert model.language_model.layers[0].self_attn.qkv_proj.quantization == packing
    assert model.language_model.embed_tokens.quantization == packing
    agree(model, model_of(raw, floats))


# --- fused projections ------------------------------------------------------------------------------


def random_linear(rows: int, seed: int, packing: Quantization | None) -> Linear:
    layer = Linear(128, rows, bias=True, quantization=packing)
    layer.weight = mx.random.normal((rows, 128), key=mx.random.key(seed))
    layer.bias = mx.random.normal((rows,), key=mx.random.key(seed + 100))
    if packing:
        for name, array in packing.pack(layer.weight).items():
            layer[name] = array
    return layer


def stacked(parts: list[Linear]) -> Linear:
    layer = Linear(128, sum(part.num_outputs for part in parts), bias=True, quantization=parts[0].quantization)
    for name in parts[0]:
        if isinstance(parts[0][name], mx.array):
            layer[name] = mx.concatenate([part[name] for part in parts])
    return layer


@pytest.mark.parametrize("input_rows", [1, 40])
@pytest.mark.parametrize("packing", [None, *MODES[6:9], *MODES[-3:]], ids=lambda p: name_of(p) if p else "float")
def test_fused_equals_its_parts(packing: Quantization | None, input_rows: int) -> None:
    parts = [random_linear(rows, seed, packing) for seed, rows in enumerate((64, 32, 32))]
    x = mx.random.normal((input_rows, 128))
    one, many = stacked(parts), Parallel(parts)
    assert distance(one(x), many(x)) <= TOLERANCE
    for start, stop in [(0, 64), (64, 128), (10, 100), (64, 96), (95, 97)]:
        expected = many(x)[:, start:stop]
        assert distance(one.outputs(start, stop)(x), expected) <= TOLERANCE
        assert distance(many.outputs(start, stop)(x), expected) <= TOLERANCE


def mixed_checkpoint(family: str) -> tuple[Json, Tensors, Json, Tensors]:
    """q packed in 4 bits, v in 8, k left float: config.json and tensors, packed and float."""
    raw = wide_config_json(family)
    _, packed, floats = quantized(raw, random_tensors(raw), lambda m, _: m.endswith("q_proj"), 4)
    packed_raw, packed, _ = quantized(raw, packed, lambda m, _: m.endswith("v_proj"), 8)
    _, _, floats = quantized(raw, floats, lambda m, _: m.endswith("v_proj"), 8)
    packed_raw["quantization"] = {"bits": 8, "group_size": 64}
    for module in (name.removesuffix(".scales") for name in packed if name.endswith("q_proj.scales")):
        packed_raw["quantization"][module] = {"bits": 4, "group_size": 64}
    return packed_raw, packed, raw, floats


@pytest.mark.parametrize("family", FAMILIES)
def test_differently_packed_parts_run_side_by_side(family: str) -> None:
    packed_raw, packed, raw, floats = mixed_checkpoint(family)
    model = model_of(packed_raw, packed)
    assert isinstance(model.language_model.layers[0].self_attn.qkv_proj, Parallel)
    assert isinstance(model.vision_tower.layers[0].self_attn.qkv_proj, Parallel)
    agree(model, model_of(raw, floats))


# --- the three vintages of mlx-vlm ------------------------------------------------------------------


def padded_vision(raw: Json, tensors: Tensors, width: int = 128) -> tuple[Json, Tensors]:
    """The vision MLP widened with zeros, as mlx-vlm once did (4304 -> 4352)."""
    raw, padded = copy.deepcopy(raw), {}
    raw["vision_config"]["intermediate_size"] = width
    for name, tensor in tensors.items():
        if ".mlp.fc1." in name:
            tensor = pad_rows(tensor, width)
        elif name.endswith(".mlp.fc2.weight"):
            tensor = pad_columns(tensor, width)
        padded[name] = tensor
    return raw, padded


def is_positions(module: str) -> bool:
    return module.endswith("position_embedding")


def vintage(name: str, family: str, positions: bool) -> tuple[Json, Tensors, Json, Tensors]:
    raw = wide_config_json(family)
    tensors = random_tensors(raw)
    if name == "everything, vision MLP padded":
        raw, tensors = padded_vision(raw, tensors)
        return *quantized(raw, tensors, lambda m, _: positions or not is_positions(m))[:2], raw, tensors
    if name == "vision skipped":
        raw["vision_config"]["skip_vision"] = True
        return *quantized(raw, tensors, lambda m, _: not m.startswith("vision_tower"))[:2], raw, tensors
    raw["vision_config"]["skip_vision_non_divisible"] = True
    chosen = quantized(raw, tensors, lambda m, w: w.shape[-1] % 64 == 0 and (positions or not is_positions(m)))
    return *chosen[:2], raw, tensors


def dequantized(packed: Tensors) -> Tensors:
    floats = {}
    for name, tensor in packed.items():
        module, _, part = name.rpartition(".")
        if f"{module}.scales" not in packed or part == "bias":
            floats[name] = tensor
        elif part == "weight":
            scales, biases = packed[f"{module}.scales"], packed[f"{module}.biases"]
            floats[name] = mx.dequantize(tensor, scales, biases, group_size=64, bits=4)
    return floats


VINTAGES = ("everything, vision MLP padded", "vision skipped", "whole groups only")


@pytest.mark.parametrize("name", VINTAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_vintages_of_mlx_vlm(family: str, name: str, tmp_path: Path) -> None:
    packed_raw, packed, raw, _ = vintage(name, family, positions=False)
    packed_raw["quantization_config"] = packed_raw["quantization"]  # it writes both
    model = load_packed(write_folder(tmp_path, packed_raw, packed), dtype="float32")
    agree(model, model_of(raw, dequantized(packed)))


@pytest.mark.parametrize("name", ["everything, vision MLP padded", "whole groups only"])
def test_a_packed_position_table_loads(name: str, tmp_path: Path) -> None:
    """mlx-vlm keeps positions in an nn.Embedding, which nn.quantize packs like any other (1152 = 18 x 64)."""
    packed_raw, packed, raw, _ = vintage(name, "gemma", positions=True)
    model = load_packed(write_folder(tmp_path, packed_raw, packed), dtype="float32")
    agree(model, model_of(raw, dequantized(packed)))


def test_zero_padding_of_the_vision_mlp_is_exact() -> None:
    raw = wide_config_json("gemma2")
    tensors = random_tensors(raw)
    model, padded = model_of(raw, tensors), model_of(*padded_vision(raw, tensors))
    assert distance(pictures(model), pictures(padded)) <= 1e-6  # zeros added in another order


# --- what config.json says of it --------------------------------------------------------------------


@pytest.mark.parametrize("key, wrong", [("bits", 8), ("group_size", 32), ("mode", "mxfp4")])
@pytest.mark.parametrize("where", ["global", "module"])
def test_config_that_contradicts_the_tensors(where: str, key: str, wrong: int | str) -> None:
    raw = wide_config_json("gemma")
    raw, packed, _ = quantized(raw, random_tensors(raw), text_only)
    entry = raw["quantization"]
    if where == "module":
        raw["quantization"][f"{TEXT_ROW}.q_proj"] = entry = dict(entry)
    true = entry[key]
    entry[key] = wrong
    with one_line_error(key, str(wrong), str(true), "language_model"):
        model_of(raw, packed)


def test_an_override_for_a_module_is_read_under_its_classic_name() -> None:
    packed_raw, packed, raw, floats = mixed_checkpoint("gemma")
    agree(model_of(packed_raw, packed), model_of(raw, floats))
    del packed_raw["quantization"][f"{TEXT_ROW}.q_proj"]
    with one_line_error(f"{TEXT_ROW}.q_proj", "8", "4"):
        model_of(packed_raw, packed)


def test_without_a_quantization_entry_the_tensors_decide() -> None:
    raw = wide_config_json("gemma")
    _, packed, floats = quantized(raw, random_tensors(raw), text_only, 8, 32)
    agree(model_of(raw, packed), model_of(raw, floats))


@pytest.mark.parametrize("part", ["scales", "biases"])
def test_packed_tensors_that_do_not_fit_together(part: str) -> None:
    raw = wide_config_json("gemma")
    raw, packed, _ = quantized(raw, random_tensors(raw), text_only)
    module = f"{TEXT_ROW}.o_proj"
    for tensor in (packed[f"{module}.{part}"][:-1], packed[f"{module}.{part}"][:, :-1], mx.zeros(())):
        with one_line_error(module):
            model_of(raw, packed | {f"{module}.{part}": tensor})
    del packed[f"{module}.{part}"]
    with one_line_error(module):
        model_of(raw, packed)


def test_a_packed_weight_stored_as_floats_is_an_error() -> None:
    raw = wide_config_json("gemma")
    raw, packed, _ = quantized(raw, random_tensors(raw), text_only)
    name = f"{TEXT_ROW}.o_proj.weight"
    with one_line_error(name):
        model_of(raw, packed | {name: packed[name].astype(mx.float32)})


def test_scales_of_a_floating_mode_stored_as_floats_are_an_error() -> None:
    raw = wide_config_json("gemma")
    raw, packed, _ = quantized(raw, random_tensors(raw), text_only, 4, 32, "mxfp4")
    name = f"{TEXT_ROW}.o_proj.scales"
    with one_line_error(name):
        model_of(raw, packed | {name: packed[name].astype(mx.float32)})
