"""Which modules are packed, and what is not: recipes, odd widths, tables."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from helpers.checkpoints import GOLDEN, assert_same, packings, stored
from helpers.conversions import convert, weights_only
from helpers.models import (
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
from helpers.packing import EIGHT, FOUR, PARTS, TEXT, TOLERANCE, VISION, padded

import pg_mlx
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.checkpoint.validate import validate
from pg_mlx.files.json import read_json
from pg_mlx.quantization import Quantization

POSITIONS = f"{VISION}.embeddings.position_embedding"


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
