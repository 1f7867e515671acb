"""Conversion into few bits, between packings, and back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.checkpoints import GOLDEN, PACKINGS, assert_same, config_of, matrices, packings, read_all, stored
from helpers.commands import tiny_checkpoint
from helpers.models import (
    Tensors,
    config_json,
    distance,
    load_packed,
    model_of,
    one_line_error,
    quantized,
    random_tensors,
    same,
    text_logits,
    wide_config_json,
    write_folder,
)

import pg_mlx
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.checkpoint.validate import validate
from pg_mlx.conversion import pipeline, plan, weights
from pg_mlx.files.json import read_json
from pg_mlx.quantization import Quantization

TEXT, VISION = "language_model.model", "vision_tower.vision_model"
POSITIONS = f"{VISION}.embeddings.position_embedding"
FOUR, EIGHT = Quantization(4, 64), Quantization(8, 64)
PARTS = ("weight", "scales", "biases")
TOLERANCE = 1e-4
"""Of logits in float32: a packed product sums in another order than one of floats."""

convert = partial(pg_mlx.convert, check=False)
weights_only = partial(convert, need_tokenizer=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, in bfloat16; all columns are multiples of 128 but those of SigLIP's fc2: 300."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def eight(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in 8 bits."""
    folder = tmp_path_factory.mktemp("models") / "eight"
    convert(tiny, folder, q_bits=8)
    return folder


def padded(name: str, tensor: mx.array) -> mx.array:
    """With SigLIP's MLP 384 wide."""
    if ".mlp.fc1." in name:
        return mx.concatenate([tensor, mx.zeros((84, *tensor.shape[1:]), tensor.dtype)])
    if name.endswith(".mlp.fc2.weight"):
        return mx.concatenate([tensor, mx.zeros((tensor.shape[0], 84), tensor.dtype)], axis=1)
    return tensor


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


# --- every packing --------------------------------------------------------------------------------------


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


# --- packed sources -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("options", [{}, {"dequantize": True}, {"q_bits": 8}], ids=["kept", "unpacked", "repacked"])
def test_a_packed_position_table(options: dict, tmp_path: Path):
    """mlx-vlm has packed it; we keep it where nothing is asked, but never pack one."""
    raw, tensors, floats = quantized(wide_config_json("gemma2"), random_tensors(wide_config_json("gemma2")),
                                     lambda module, weight: module == POSITIONS)  # fmt: skip
    source = write_folder(tmp_path / "source", raw, tensors)
    weights_only(source, tmp_path / "out", **options)
    written = stored(tmp_path / "out")
    if not options:
        assert_same(written, tensors)
    else:
        dtype = mx.bfloat16 if "q_bits" in options else mx.float32
        assert f"{POSITIONS}.scales" not in written
        assert same(written[f"{POSITIONS}.weight"], floats[f"{POSITIONS}.weight"].astype(dtype))
    model = load_packed(tmp_path / "out", dtype="float32")
    if "q_bits" not in options:
        assert distance(text_logits(model), text_logits(model_of(raw, tensors))) <= TOLERANCE


# --- who gets how many bits -----------------------------------------------------------------------------


def test_recipes_and_overrides_do_what_they_say(tiny: Path, tmp_path: Path):
    """The decoder's columns, 128 and 256, are no multiples of 512, so `balanced` packs it in 6 bits."""
    six = Quantization(6, 64)
    for recipe, decoder, embedding in (("tiny", FOUR, FOUR), ("balanced", six, six), ("quality", EIGHT, EIGHT)):
        convert(tiny, tmp_path / recipe, q_recipe=recipe)
        for module, q in packings(tmp_path / recipe).items():
            wanted = embedding if "embed_tokens" in module else decoder if module.startswith(TEXT) else EIGHT
            assert q == wanted, (recipe, module)
    overrides = {"*.embed_tokens": "8", "*.layers.0.*": "3/32", "*.o_proj": "mxfp4", "multi_modal*": "float"}
    convert(tiny, tmp_path / "out", q_bits=4, q_overrides=overrides)
    for module, q in packings(tmp_path / "out").items():
        wanted = FOUR
        if module.endswith("embed_tokens"):
            wanted = EIGHT
        elif ".layers.0." in module:
            wanted = Quantization(3, 32)
        elif module.endswith("o_proj"):
            wanted = Quantization(4, 32, "mxfp4")
        elif module.startswith("multi_modal"):
            wanted = None
        assert q == wanted, module
    assert validate(tmp_path / "out") == []
    pg_mlx.load(tmp_path / "out")


def test_fc1_may_stay_float_where_fc2_is_padded(tiny: Path, tmp_path: Path):
    weights_only(tiny, tmp_path / "out", q_bits=4, q_overrides={"*.fc1": "float"})
    fc1 = f"{VISION}.encoder.layers.1.mlp.fc1"
    written, source = stored(tmp_path / "out"), SafetensorsFolder(tiny)
    for part in ("weight", "bias"):
        assert same(written[f"{fc1}.{part}"], padded(f"{fc1}.{part}", source.read(f"{fc1}.{part}")))
    load_packed(tmp_path / "out")


def test_what_no_group_divides_stays_float_and_is_named(tmp_path: Path):
    """Of the golden widths 32 divides 64, 96 and SigLIP's padded 128, but neither 48 nor 68."""
    report = weights_only(GOLDEN / "pg2_classic", tmp_path / "out", q_bits=8, q_group_size=32)
    how = packings(tmp_path / "out")
    expected = [module for module in how if module.startswith(("vision_tower", "multi_modal")) and "fc2" not in module]
    expected += [f"{TEXT}.layers.{layer}.mlp.down_proj" for layer in range(4)]
    assert sorted(report.left_float) == sorted(expected) == sorted(module for module, q in how.items() if q is None)
    entry = read_json(tmp_path / "out" / "config.json")["quantization"]
    assert {name for name, value in entry.items() if value is False} == set(expected)
    assert f"{len(expected)} modules" in (tmp_path / "out" / "README.md").read_text()
    assert load_packed(tmp_path / "out").language_model.embed_tokens.quantization == Quantization(8, 32)


def test_packing_nothing_is_an_error(tmp_path: Path):
    with one_line_error("quantizes nothing"):
        weights_only(GOLDEN / "pg1_classic", tmp_path / "out", q_bits=4, q_overrides={"*": "float"})
    raw = config_json("gemma", dict(hidden_size=24, intermediate_size=40, num_attention_heads=2, head_dim=20), None)
    source = write_folder(tmp_path / "source", raw, random_tensors(raw))
    with one_line_error("quantizes nothing"):
        weights_only(source, tmp_path / "out", q_bits=4, q_overrides={"*.fc2": "float"})
    with one_line_error("exclude each other"):
        weights_only(source, tmp_path / "out", q_bits=4, dequantize=True)
    assert not (tmp_path / "out").exists()


# --- memory ---------------------------------------------------------------------------------------------


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
    recipe = plan.choose_recipe(False, options.get("q_bits"), None, options.get("q_mode"), None, None)
    job = pipeline.Conversion(
        source, recipe, dequantize="dequantize" in options, dtype=options.get("dtype"), need_tokenizer=False
    )
    before = mx.get_active_memory()
    peak = job.run(tmp_path / "out", check=False).peak_memory_bytes - before
    promised, model = job.expected_peak(), job.checkpoint.num_bytes
    print(f"peak {peak / 1e6:.1f} MB, at most {promised / 1e6:.1f} were promised; the model has {model / 1e6:.0f}")
    assert peak <= promised <= model / 3


@pytest.mark.parametrize("recipe", [{}, {"q_bits": 4}], ids=["float", "4 bits"])
def test_a_table_that_ends_before_the_image_token_gets_rows_for_it(recipe: dict, tmp_path: Path) -> None:
    """mlx-vlm and Swift look <image> up before they replace it; beyond the table that would read foreign memory."""
    from tools import random_checkpoint

    raw = random_checkpoint.raw_config("tiny-56", vocab_size=1856) | {"image_token_index": 1856}
    random_checkpoint.write(tmp_path / "source", raw, None, random_checkpoint.SMALL_TOKENIZER)
    convert(tmp_path / "source", tmp_path / "target", **recipe)
    source, target = load_packed(tmp_path / "source"), load_packed(tmp_path / "target")
    assert target.config.text.vocab_size == 1920
    table = target.language_model.embed_tokens(mx.arange(1920))
    assert not table[1856:].any()
    if not recipe:
        assert mx.array_equal(table[:1856], source.language_model.embed_tokens(mx.arange(1856)))


@pytest.mark.parametrize("q", [EIGHT, Quantization(8, 32, "mxfp8")], ids=["affine", "mxfp8"])
def test_a_packed_table_gets_those_rows_without_being_packed_again(q: Quantization, tmp_path: Path):
    from tools import random_checkpoint

    raw = random_checkpoint.raw_config("tiny-56", vocab_size=1856, padded=True) | {"image_token_index": 1856}
    random_checkpoint.write(tmp_path / "source", raw, q, random_checkpoint.SMALL_TOKENIZER)
    convert(tmp_path / "source", tmp_path / "out")
    table = f"{TEXT}.embed_tokens."
    expected = {
        name: mx.pad(tensor, [(0, 64), (0, 0)]) if name.startswith(table) else tensor
        for name, tensor in stored(tmp_path / "source").items()
    }
    assert_same(stored(tmp_path / "out"), expected)
    model = load_packed(tmp_path / "out")
    assert not model.language_model.embed_tokens(mx.arange(1856, 1920)).any()


def test_an_adapter_is_merged_into_a_packed_source_as_floats(tiny: Path, tmp_path: Path) -> None:
    """Unpacked, merged in float32, and packed again only because -q asks for it."""
    weights_only(tiny, tmp_path / "packed", q_bits=8)
    module = f"{TEXT}.layers.1.mlp.down_proj"
    source = SafetensorsFolder(tmp_path / "packed")
    base = EIGHT.unpack({part: source.read(f"{module}.{part}") for part in PARTS})
    up, down = mx.random.normal((base.shape[0], 2)), mx.random.normal((2, base.shape[1]))
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    keys = {f"base_model.model.{module}.lora_A.weight": down, f"base_model.model.{module}.lora_B.weight": up}
    mx.save_safetensors(str(lora / "adapter_model.safetensors"), keys)
    merged = base + 2 * up @ down

    with one_line_error("quantized", "-q", "-d"):
        weights_only(tmp_path / "packed", tmp_path / "out", adapter_path=lora)
    weights_only(tmp_path / "packed", tmp_path / "float", adapter_path=lora, dequantize=True, dtype="float32")
    assert mx.allclose(SafetensorsFolder(tmp_path / "float").read(f"{module}.weight"), merged, atol=1e-6)
    weights_only(tmp_path / "packed", tmp_path / "four", adapter_path=lora, q_bits=4, dtype="float32")
    four = SafetensorsFolder(tmp_path / "four")
    assert all(mx.array_equal(four.read(f"{module}.{part}"), array) for part, array in FOUR.pack(merged).items())
