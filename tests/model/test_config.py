"""Every config.json in the wild gives the right numbers, and every wrong one a line that says what is wrong."""

import math
from typing import Any

import pytest
from helpers.models import Json, config_json, one_line_error

from pg_mlx.checkpoint.layouts import weight_specs
from pg_mlx.config import SIZES, PaliGemmaConfig, TextConfig, VisionConfig

# As published by Google, with the fields that transformers 4.41 and 4.46 left out because they are defaults.

PG1_224: Json = {
    "architectures": ["PaliGemmaForConditionalGeneration"],
    "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "ignore_index": -100, "image_token_index": 257152,
    "hidden_size": 2048, "projection_dim": 2048, "vocab_size": 257216, "model_type": "paligemma",
    "torch_dtype": "float32",
    "text_config": {
        "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_image_tokens": 256, "num_key_value_heads": 1, "torch_dtype": "float32",
        "vocab_size": 257216,
    },
    "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "num_image_tokens": 256, "patch_size": 14,
        "projection_dim": 2048, "projector_hidden_act": "gelu_fast", "torch_dtype": "float32",
        "vision_use_head": False,
    },
}  # fmt: skip

_PG2_VISION: Json = {**PG1_224["vision_config"], "num_positions": 256, "image_size": 448}
_PG2_TEXT: Json = {
    "architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
    "eos_token_id": [1, 107], "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "model_type": "gemma2", "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "torch_dtype": "bfloat16", "vocab_size": 257216,
}  # fmt: skip


def pg2(width: int, **text: int) -> Json:
    """PaliGemma 2 as published: no hidden_size at the top, and there a stray num_hidden_layers."""
    return {
        "model_type": "paligemma", "image_token_index": 257152, "num_hidden_layers": 26, "projection_dim": width,
        "torch_dtype": "bfloat16", "text_config": {**_PG2_TEXT, "hidden_size": width, **text},
        "vision_config": {**_PG2_VISION, "projection_dim": width},
    }  # fmt: skip


PG2_3B = pg2(2304, intermediate_size=9216, num_hidden_layers=26, num_key_value_heads=4)
PG2_10B = pg2(3584, intermediate_size=14336, num_attention_heads=16, num_hidden_layers=42, num_key_value_heads=8)
PG2_28B = pg2(4608, intermediate_size=36864, num_attention_heads=32, num_hidden_layers=46, num_key_value_heads=16,
              head_dim=128, query_pre_attn_scalar=144)  # fmt: skip

TRANSFORMERS_5: Json = {
    "model_type": "paligemma", "dtype": "bfloat16", "image_token_id": 257152, "tie_word_embeddings": True,
    "text_config": {
        **{key: value for key, value in PG2_28B["text_config"].items() if key != "torch_dtype"}, "dtype": "bfloat16",
        "layer_types": ["full_attention", "sliding_attention"] * 23, "use_bidirectional_attention": True,
        "rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}, "rms_norm_eps": 1e-05,
    },
    "vision_config": {**_PG2_VISION, "layer_norm_eps": 1e-05, "num_channels": 3},
}  # fmt: skip

_MLX_QUANTIZATION = {"group_size": 64, "bits": 4, "language_model.model.embed_tokens": {"group_size": 32, "bits": 8}}
MLX_VLM: Json = {
    **PG1_224,
    "quantization": _MLX_QUANTIZATION,
    "quantization_config": _MLX_QUANTIZATION,
    "vision_config": {**PG1_224["vision_config"], "intermediate_size": 4352, "skip_vision": False},
}

# What they mean: width, MLP, layers, heads, key/value heads, head_dim, and the scale of the scores.
MEANINGS = {
    "PaliGemma 3B": (PG1_224, (2048, 16384, 18, 8, 1, 256, 256**-0.5)),
    "PaliGemma 2 3B": (PG2_3B, (2304, 9216, 26, 8, 4, 256, 256**-0.5)),
    "PaliGemma 2 10B": (PG2_10B, (3584, 14336, 42, 16, 8, 256, 256**-0.5)),
    "PaliGemma 2 28B": (PG2_28B, (4608, 36864, 46, 32, 16, 128, 144**-0.5)),
    "transformers 5": (TRANSFORMERS_5, (4608, 36864, 46, 32, 16, 128, 144**-0.5)),
    "mlx-vlm": (MLX_VLM, (2048, 16384, 18, 8, 1, 256, 256**-0.5)),
}


def text_of(raw: Json) -> TextConfig:
    return PaliGemmaConfig.from_dict(raw).text


@pytest.mark.parametrize("name", MEANINGS)
def test_dimensions(name: str) -> None:
    raw, expected = MEANINGS[name]
    text = text_of(raw)
    dimensions = (text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.num_attention_heads,
                  text.num_key_value_heads, text.head_dim, text.query_pre_attn_scalar**-0.5)  # fmt: skip
    assert dimensions == expected
    assert text.vocab_size == 257216


def test_gemma_has_neither_caps_nor_windows() -> None:
    text = text_of(PG1_224)
    assert not text.is_gemma2
    assert (text.attn_logit_softcapping, text.final_logit_softcapping, text.sliding_window) == (None, None, None)
    assert text.sliding_layers == (False,) * 18
    assert (text.rms_norm_eps, text.rope_theta) == (1e-6, 10000.0)


@pytest.mark.parametrize("raw", [PG2_3B, {"text_config": {"model_type": "gemma2"}}], ids=["published", "empty"])
def test_gemma2_has_caps_and_slides_in_even_layers(raw: Json) -> None:
    text = text_of(raw)
    assert text.is_gemma2
    assert (text.attn_logit_softcapping, text.final_logit_softcapping, text.sliding_window) == (50.0, 30.0, 4096)
    assert text.sliding_layers == (True, False) * 13
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (8, 4, 256)


def test_transformers_5_names() -> None:
    config = PaliGemmaConfig.from_dict(TRANSFORMERS_5)
    assert (config.text.rope_theta, config.text.rms_norm_eps) == (20000.0, 1e-5)
    assert config.text.sliding_layers == (False, True) * 23
    assert config.vision.layer_norm_eps == 1e-5


def test_explicit_null_switches_off() -> None:
    off = dict.fromkeys(["attn_logit_softcapping", "final_logit_softcapping", "sliding_window"])
    text = text_of(config_json("gemma2", off))
    assert (text.attn_logit_softcapping, text.final_logit_softcapping, text.sliding_window) == (None, None, None)


@pytest.mark.parametrize("raw", [{"vision_config": None}, {"vision_config": {}}, {}], ids=str)
def test_without_vision_config_it_is_so400m(raw: Json) -> None:
    vision = PaliGemmaConfig.from_dict(raw).vision
    assert vision == VisionConfig(1152, 4304, 27, 16, 224, 14, 1e-6)
    assert vision.num_patches == 256


def test_image_size_defaults_to_224_and_patches_follow() -> None:
    assert PaliGemmaConfig.from_dict(PG1_224).vision.num_patches == 256
    assert PaliGemmaConfig.from_dict(PG2_3B).vision.num_patches == 1024


def test_quantization_entry() -> None:
    config = PaliGemmaConfig.from_dict(MLX_VLM)
    assert config.vision.intermediate_size == 4352
    assert config.quantization == _MLX_QUANTIZATION
    under_other_name = {key: value for key, value in MLX_VLM.items() if key != "quantization"}
    assert PaliGemmaConfig.from_dict(under_other_name).quantization == _MLX_QUANTIZATION
    assert PaliGemmaConfig.from_dict(PG1_224).quantization == {}


@pytest.mark.parametrize("resolution, positions", [(224, 256), (448, 1024), (896, 4096)])
@pytest.mark.parametrize("size, at_224", [
    ("paligemma-3b", 2_923_335_408),
    ("paligemma2-3b", 3_032_094_960),
    ("paligemma2-10b", 9_662_409_456),
    ("paligemma2-28b", 27_650_192_112),
])  # fmt: skip
def test_parameter_counts(size: str, at_224: int, resolution: int, positions: int) -> None:
    text = {**SIZES[size], "vocab_size": 257152}
    config = PaliGemmaConfig.from_dict({"text_config": text, "vision_config": {"image_size": resolution}})
    count = sum(math.prod(shape) for spec in weight_specs(config) for _, shape in spec.expected())
    assert count == at_224 + (positions - 256) * 1152


# --- tensors and config.json ------------------------------------------------------------------------


def test_tensors_fill_what_config_leaves_out() -> None:
    told = {
        "text_config.hidden_size": 2048, "text_config.intermediate_size": 16384, "text_config.num_hidden_layers": 18,
        "text_config.vocab_size": 257152, "text_config.query_width": 2048, "text_config.key_width": 256,
        "vision_config.intermediate_size": 4352, "vision_config.image_size": 896,
    }  # fmt: skip
    config = PaliGemmaConfig.from_dict({}, told)
    text = config.text
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers) == (2048, 16384, 18)
    assert (text.num_attention_heads, text.num_key_value_heads, text.vocab_size) == (8, 1, 257152)
    assert (config.vision.intermediate_size, config.vision.num_patches) == (4352, 4096)


@pytest.mark.parametrize("name, told, said", [
    ("text_config.hidden_size", 2304, "2048"),
    ("text_config.intermediate_size", 9216, "16384"),
    ("text_config.num_hidden_layers", 26, "18"),
    ("text_config.vocab_size", 257152, "257216"),
    ("text_config.query_width", 4096, "8 x 256 = 2048"),
    ("text_config.key_width", 1024, "1 x 256 = 256"),
    ("vision_config.hidden_size", 768, "1152"),
    ("vision_config.intermediate_size", 4352, "4304"),
    ("vision_config.num_hidden_layers", 12, "27"),
    ("vision_config.patch_size", 16, "14"),
])  # fmt: skip
def test_contradictions_name_both_values(name: str, told: int, said: str) -> None:
    with one_line_error(name.replace("query_width", "num_attention_heads").replace("key_width", "num_key_value_heads"),
                        str(told), said):  # fmt: skip
        PaliGemmaConfig.from_dict(PG1_224, {name: told})


# --- wrong values -----------------------------------------------------------------------------------

NOT_INTEGERS = [2304.0, "2304", True, False, 0, -1, [8], {}, math.nan, math.inf, 2**40]
NOT_NUMBERS = ["1e-6", True, 0, -1.0, [1.0], {}, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_key_value_heads", "head_dim", "vocab_size",
                                 "sliding_window"])  # fmt: skip
def test_text_integers(key: str, value: Any) -> None:
    with one_line_error(f"text_config.{key}", repr(value)):
        PaliGemmaConfig.from_dict(config_json("gemma2", {key: value}))


@pytest.mark.parametrize("value", NOT_INTEGERS, ids=repr)
@pytest.mark.parametrize("key", ["image_size", "patch_size", "num_attention_heads"])
def test_vision_integers(key: str, value: Any) -> None:
    with one_line_error(f"vision_config.{key}", repr(value)):
        PaliGemmaConfig.from_dict(config_json("gemma", vision={key: value}))


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "query_pre_attn_scalar", "attn_logit_softcapping",
                                 "final_logit_softcapping"])  # fmt: skip
def test_text_numbers(key: str, value: Any) -> None:
    with one_line_error(f"text_config.{key}", repr(value)):
        PaliGemmaConfig.from_dict(config_json("gemma2", {key: value}))


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "query_pre_attn_scalar"])
def test_a_null_number_is_a_missing_one(key: str) -> None:
    """As a null integer is."""
    defaults = dict(rms_norm_eps=1e-6, rope_theta=10000.0, query_pre_attn_scalar=256.0)
    assert getattr(text_of(config_json("gemma2", {key: None})), key) == defaults[key]


@pytest.mark.parametrize("text, mentioned", [
    ({"num_attention_heads": 3}, ["3", "2"]),
    ({"rope_parameters": {"rope_type": "yarn"}}, ["yarn"]),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["linear"]),
    ({"rope_parameters": [1]}, ["rope_parameters"]),
    ({"rope_parameters": {"rope_theta": math.nan}}, ["rope_theta"]),
    ({"layer_types": ["full_attention"]}, ["layer_types", "3"]),
    ({"layer_types": "full_attention"}, ["layer_types"]),
    ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, ["chunked_attention"]),
    ({"model_type": "gemma3_text"}, ["gemma3_text"]),
    ({"model_type": None}, ["model_type"]),
    ({"num_hidden_layers": 10**6}, ["num_hidden_layers", "1000000"]),
], ids=str)  # fmt: skip
def test_text_that_is_not_gemma(text: Json, mentioned: list[str]) -> None:
    with one_line_error(*mentioned):
        PaliGemmaConfig.from_dict(config_json("gemma2", text))


@pytest.mark.parametrize("raw, mentioned", [
    ([], ["object"]),
    ("paligemma", ["object"]),
    (None, ["object"]),
    ({"model_type": "llava"}, ["llava"]),
    ({"model_type": ["paligemma"]}, ["paligemma"]),
    ({"text_config": [1]}, ["text_config"]),
    ({"text_config": "gemma"}, ["text_config"]),
    ({"vision_config": 5}, ["vision_config"]),
    ({"vision_config": {"image_size": 225}}, ["225", "14"]),
    ({"vision_config": {"num_attention_heads": 7}}, ["1152", "7"]),
    ({"quantization": [4]}, ["quantization"]),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, ["bitsandbytes"]),
    ({"quantization_config": {"quant_method": "a\nb"}}, []),
], ids=str)  # fmt: skip
def test_other_things_than_a_paligemma_config(raw: Any, mentioned: list[str]) -> None:
    with one_line_error(*mentioned):
        PaliGemmaConfig.from_dict(raw)
