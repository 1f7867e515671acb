"""Checkpoints whose quality is compared, and a quick comparison of two of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from helpers.commands import tiny_checkpoint
from helpers.models import Json, Tensors, quantized, write_folder
from pg_mlx.checkpoint.open import open_local
from pg_mlx.checkpoint.tensors import SafetensorsFolder
from pg_mlx.conversion.quality import Quality, compare, default_samples
from pg_mlx.files.json import read_json
from pg_mlx.quantization import pad_columns, pad_rows

MAX_TOKENS = 12
SAMPLES = default_samples()[::3]  # every picture, every prompt


def tensors_of(folder: Path) -> Tensors:
    opened = SafetensorsFolder(folder)
    return {name: opened.read(name) for name in opened.shapes}


def copy_of(source: Path, target: Path, raw: Json, tensors: Tensors) -> Path:
    """A checkpoint with the source's tokenizer."""
    write_folder(target, raw, tensors)
    shutil.copy(source / "tokenizer.model", target)
    return target


def loud_checkpoint(folder: Path) -> Path:
    """Of random models with tied embeddings most only repeat their last token. In this one the layers speak louder."""
    quiet = tiny_checkpoint(folder / "quiet")
    tensors = tensors_of(quiet)
    for name in tensors:
        if "post_" in name and name.startswith("language_model"):
            tensors[name] = tensors[name] + 2
    return copy_of(quiet, folder / "source", read_json(quiet / "config.json"), tensors)


def padded(source: Path, width: int = 384) -> tuple[Json, Tensors]:
    """config.json and tensors with the vision MLP as wide as conversion makes it (300 in the source)."""
    raw, tensors = read_json(source / "config.json"), tensors_of(source)
    assert raw["vision_config"]["intermediate_size"] == 300
    raw["vision_config"]["intermediate_size"] = width
    for name, tensor in tensors.items():
        if ".mlp.fc1." in name:
            tensors[name] = pad_rows(tensor, width)
        if name.endswith(".mlp.fc2.weight"):
            tensors[name] = pad_columns(tensor, width)
    return raw, tensors


def packed(source: Path, target: Path, bits: int) -> Path:
    raw, tensors = padded(source)
    raw, tensors, _ = quantized(raw, tensors, lambda name, _: "position" not in name, bits)
    return copy_of(source, target, raw, tensors)


def quality(source: Path, result: Path, **options: Any) -> Quality:
    options = dict(samples=SAMPLES, max_tokens=MAX_TOKENS, dtype="float32") | options
    return compare(open_local(source), result, **options)
