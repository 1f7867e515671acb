"""The small files beside the weights, complete, so that no reader has to know a default."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.mask_decoder import FILE_NAME
from ..checkpoint.open import Checkpoint
from ..config import PaliGemmaConfig
from ..files.arrays import write_arrays
from ..ops.device import dtype_name
from ..processor import RESAMPLES
from ..processor.added_tokens import added_in_list
from .plan import Plan
from .tokenizer_json import write_tokenizer_json


def write_side_files(
    folder: Path, checkpoint: Checkpoint, plan: Plan, dtype: mx.Dtype, masks: dict[str, mx.array]
) -> None:
    """Write all of them into a folder, the checkpoint's own files where it has them. dtype: of the written floats.
    masks: weights of the decoder of <seg> codes, perhaps none."""
    given = checkpoint.side_files
    for name, path in given.items():
        shutil.copyfile(path, folder / name)
    if "tokenizer.json" not in given and "tokenizer.model" in given:
        added = added_in_list(given["added_tokens.json"]) if "added_tokens.json" in given else {}
        write_tokenizer_json(folder / "tokenizer.model", folder / "tokenizer.json", added)
    if masks:
        write_arrays(folder / FILE_NAME, masks)
    config = plan.config
    files: dict[str, dict[str, Any]] = {
        "config.json": config_json(config, dtype_name(dtype)),
        "preprocessor_config.json": preprocessor_json(
            config.vision.image_size,
            config.vision.num_patches,
            next(number for number, name in RESAMPLES.items() if name == checkpoint.resample),
        ),
    }
    if "generation_config.json" not in given:
        files["generation_config.json"] = GENERATION_JSON
    if given and "tokenizer_config.json" not in given:
        files["tokenizer_config.json"] = tokenizer_config_json()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def config_json(config: PaliGemmaConfig, dtype: str) -> dict[str, Any]:
    """A config.json with every field that transformers, mlx-vlm or Swift's MLXVLM reads, none left to a default."""
    text, vision = config.text, config.vision
    raw: dict[str, Any] = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "image_token_index": config.image_token_index,
        "hidden_size": text.hidden_size,
        "projection_dim": text.hidden_size,
        "vocab_size": text.vocab_size,
        "ignore_index": -100,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
    }
    raw["text_config"] = {
        "model_type": text.model_type,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "head_dim": text.head_dim,
        "vocab_size": text.vocab_size,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": text.rope_theta,
        "max_position_embeddings": 8192,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "num_image_tokens": vision.num_patches,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_bidirectional_attention": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "torch_dtype": dtype,
    }
    if text.is_gemma2:
        scalar = text.query_pre_attn_scalar
        kinds = ("full_attention", "sliding_attention")
        raw["text_config"] |= {
            "query_pre_attn_scalar": scalar if scalar % 1 else int(scalar),
            "attn_logit_softcapping": text.attn_logit_softcapping,
            "final_logit_softcapping": text.final_logit_softcapping,
            "sliding_window": text.sliding_window,
            "layer_types": [kinds[slides] for slides in text.sliding_layers],
        }
    raw["vision_config"] = {
        "model_type": "siglip_vision_model",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_hidden_layers,
        "num_attention_heads": vision.num_attention_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "num_channels": 3,
        "layer_norm_eps": vision.layer_norm_eps,
        "hidden_act": "gelu_pytorch_tanh",
        "num_image_tokens": vision.num_patches,
        "projection_dim": text.hidden_size,
        "vision_use_head": False,
        "torch_dtype": dtype,
    }
    if config.quantization:
        raw["quantization"] = raw["quantization_config"] = dict(config.quantization)
    return raw


def preprocessor_json(image_size: int, num_image_tokens: int, resample: int = 3) -> dict[str, Any]:
    """A flat preprocessor_config.json, as transformers before 5, mlx-vlm and Swift's MLXVLM want it."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": num_image_tokens,
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "PaliGemmaProcessor",
        "resample": resample,
        "rescale_factor": 1 / 255,
        "size": {"height": image_size, "width": image_size},
    }


def tokenizer_config_json() -> dict[str, Any]:
    """For a source that brings only a bare vocabulary."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "extra_special_tokens": {"image_token": "<image>"},
        "pad_token": "<pad>",
        "processor_class": "PaliGemmaProcessor",
        "tokenizer_class": "GemmaTokenizer",
        "unk_token": "<unk>",
    }


GENERATION_JSON = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "do_sample": False}
