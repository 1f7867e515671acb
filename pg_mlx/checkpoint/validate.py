"""Checking that a folder is complete for every MLX program that reads PaliGemma.

Swift's MLXVLM is the strictest: it wants exactly the classic tensor names, every field of its configuration structs,
and a flat preprocessor_config.json. mlx-vlm and we accept more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.json import read_json
from .layouts import HEAD, PATCH_KERNEL
from .open import open_local
from .tensors import SafetensorsFolder

_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads")
_REQUIRED = {
    "config.json": [
        *("model_type", "vocab_size", "ignore_index", "image_token_index", "hidden_size", "pad_token_id"),
        *(f"text_config.{key}" for key in (*_SIZES, "num_key_value_heads", "vocab_size", "head_dim")),
        *(f"vision_config.{key}" for key in (*_SIZES, "patch_size", "projection_dim", "image_size")),
    ],
    "preprocessor_config.json": [
        *("processor_class", "image_mean", "image_std", "size.width", "size.height", "image_seq_length"),
    ],
}
"""mlx-swift-lm, Libraries/MLXVLM/Models/Paligemma.swift: the CodingKeys without a default."""


def validate(folder: Path) -> list[str]:
    """The problems of a checkpoint folder, one line each; empty if there are none.

    Raises InputError if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    problems = [problem for name in _REQUIRED for problem in _missing_fields(folder / name, _REQUIRED[name])]
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        problems.append("no tokenizer: neither tokenizer.model nor tokenizer.json")
    elif not (folder / "tokenizer.json").is_file():
        problems.append("no tokenizer.json, and Swift reads no tokenizer.model")
    try:
        problems += _weights(folder)
    except InputError as error:
        problems.append(str(error))
    return problems


def _missing_fields(path: Path, fields: list[str]) -> list[str]:
    try:
        content = read_json(path)
    except InputError as error:
        return [str(error)]
    return [f"{path.name} lacks {field}" for field in fields if _get(content, field) is None]


def _get(content: Any, field: str) -> Any:
    for key in field.split("."):
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _weights(folder: Path) -> list[str]:
    checkpoint = open_local(folder)
    source = checkpoint.source
    if not isinstance(source, SafetensorsFolder):
        return ["the weights are not in safetensors files; convert them first"]
    heads = [name for name in source.stored if name.startswith(f"{HEAD}.")]
    foreign = sorted(source.stored.keys() - source.shapes.keys() - set(heads))
    problems = [f"{name} is not the classic name of a tensor" for name in foreign[:5]]
    if foreign[5:]:
        problems.append(f"... and {len(foreign) - 5} more such names")
    if not checkpoint.config.tie_word_embeddings:
        problems.append(
            "language_model.lm_head is a head of its own: pg_mlx and transformers use it, but in mlx-vlm and Swift's "
            "MLXVLM the embedding is the head, so they refuse the folder"
        )
    elif heads and set(heads) <= source.shapes.keys():
        problems.append("language_model.lm_head is a copy of the embedding; mlx-vlm and Swift's MLXVLM refuse it")
    elif heads:
        problems.append("language_model.lm_head is stored in place of the embedding; mlx-vlm and MLXVLM need that")
    kernel = source.stored[source.stored_name(PATCH_KERNEL)]
    if kernel[-1] != 3:
        problems.append("the patch kernel is stored as PyTorch has it, [out, in, height, width]")
    return problems
