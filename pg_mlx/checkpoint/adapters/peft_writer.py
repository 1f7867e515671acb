"""A low-rank adapter as the folder that PEFT and transformers (5 and later) load, and our own `peft.py` too."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..layouts import TEXT, VISION, vision_mlp_axis
from ..wanted import ADAPTER_CONFIG
from ..weight_files import ADAPTER_WEIGHTS

_PARTS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}


def peft_name(module: str) -> str:
    """A canonical module as transformers 5 calls it: "model.language_model.layers.0.self_attn.q_proj"."""
    for old, new in ((TEXT, "language_model"), (VISION, "vision_tower")):
        if module.startswith(f"{old}."):
            return f"model.{new}{module.removeprefix(old)}"
    return f"model.{module}"


def write_peft(
    folder: Path,
    tensors: Mapping[str, mx.array],
    scales: Mapping[str, float],
    *,
    base: str | None = None,
    revision: str | None = None,
    dropout: float = 0.0,
    vision_width: int | None = None,
) -> None:
    """Write adapter_model.safetensors and adapter_config.json into a folder that exists.

    tensors: "<canonical module>.lora_A" [R, columns], ".lora_B" [outputs, R] and for DoRA ".magnitude" [outputs].
    scales: alpha / rank, by canonical module. base: the checkpoint's name or path. vision_width: how wide SigLIP's MLP
    is without padding; the tensors are cut to it.
    """
    arrays = {}
    for name, array in tensors.items():
        module, _, part = name.rpartition(".")
        arrays[f"base_model.model.{peft_name(module)}.{_PARTS[part]}"] = _cut(module, part, array, vision_width)
    mx.save_safetensors(str(folder / ADAPTER_WEIGHTS[0]), arrays, {"format": "pt"})
    config = peft_config(tensors, scales) | {
        "base_model_name_or_path": base,
        "revision": revision,
        "lora_dropout": dropout,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def peft_config(tensors: Mapping[str, mx.array], scales: Mapping[str, float]) -> dict[str, Any]:
    """adapter_config.json of these tensors. Where ranks or scales differ, the most frequent ones stand for all, and
    patterns name the others."""
    ranks = {module: tensors[f"{module}.lora_A"].shape[0] for module in scales}
    alphas = {module: scale * ranks[module] for module, scale in scales.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "auto_mapping": {
            "base_model_class": "PaliGemmaForConditionalGeneration",
            "parent_library": "transformers.models.paligemma.modeling_paligemma",
        },
        "task_type": None,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": {peft_name(module): own for module, own in ranks.items() if own != rank},
        "alpha_pattern": {peft_name(module): _plain(own) for module, own in alphas.items() if own != alpha},
        "target_modules": target_pattern(scales),
        "use_dora": any(name.endswith(".magnitude") for name in tensors),
        "use_rslora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def target_pattern(modules: Iterable[str]) -> str:
    """A pattern that matches these canonical modules as transformers calls them, and none else: layers that have the
    same projections in common, then single modules."""
    layers, single = defaultdict[str, dict[str, list[str]]](dict), list[str]()
    for name in map(peft_name, modules):
        match = re.fullmatch(r"model\.((?:language_model|vision_tower)\.(?:.+\.)?layers)\.(\d+)\.(.+)", name)
        if match:
            layers[match[1]].setdefault(match[2], []).append(match[3])
        else:
            single.append(re.escape(name.removeprefix("model.")))
    patterns = []
    for prefix, found in layers.items():
        alike = defaultdict[tuple[str, ...], list[str]](list)
        for number, projections in found.items():
            alike[tuple(projections)].append(number)
        for common, numbers in alike.items():
            chosen = "|".join(re.escape(projection) for projection in common)
            patterns.append(rf"{re.escape(prefix)}\.({'|'.join(numbers)})\.({chosen})")
    return "|".join(rf"(.*\.)?{pattern}" for pattern in [*patterns, *single])


def _cut(module: str, part: str, array: mx.array, width: int | None) -> mx.array:
    """The array without the padding of SigLIP's MLP."""
    axis = vision_mlp_axis(module)
    if width is None or axis is None:
        return array
    if axis == 0:  # fc1: its rows
        return array if part == "lora_A" else array[:width]
    return array[:, :width] if part == "lora_A" else array


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number
