"""Adapters in the making, what they make of a model, and the models that the tests put them on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from helpers.models import (
    Json,
    Memory,
    Tensors,
    distance,
    greedy,
    pictures,
    random_ids,
    random_tensors,
    text_logits,
    wide_config_json,
)
from pg_mlx import PaliGemma
from pg_mlx.checkpoint.adapters.merge import AdaptedSource, Adapter
from pg_mlx.checkpoint.layouts import HEAD, PATCH_KERNEL

TOLERANCE = 1e-4
LAYER = "language_model.model.layers"  # of three; the last one takes rows of its fused projection apart
VISION_LAYER = "vision_tower.vision_model.encoder.layers.0"
EMBEDDING = "language_model.model.embed_tokens"
CONNECTOR = "multi_modal_projector.linear"
POSITIONS = "vision_tower.vision_model.embeddings.position_embedding"
PATCHES = PATCH_KERNEL.removesuffix(".weight")
Q, K, O = (f"{LAYER}.2.self_attn.{part}_proj" for part in "qko")  # noqa: E741
GATE, DOWN = f"{LAYER}.0.mlp.gate_proj", f"{LAYER}.1.mlp.down_proj"

Update = Callable[[np.ndarray], np.ndarray]


class Trained:
    """An adapter in the making: its tensors under canonical module names, and what it makes of float weights."""

    def __init__(self, tensors: Tensors, seed: int = 0, **config: Any):
        self.base = tensors
        self.config = {"peft_type": "LORA", "r": 4, "lora_alpha": 12, **config}
        self.random = np.random.default_rng(seed)
        self.tensors: dict[str, np.ndarray] = {}
        self.updates: list[tuple[str, Update]] = []

    def numbers(self, *shape: int) -> np.ndarray:
        return self.random.normal(0, 0.2, shape).astype(np.float32)

    def low_rank(self, *modules: str, rank: int = 4, scale: float | None = None) -> Trained:
        """LoRA, or DoRA if the config says so."""
        for module in modules:
            shape = self.base[f"{module}.weight"].shape
            a = self.numbers(rank, *((shape[3], *shape[1:3]) if len(shape) == 4 else shape[1:]))
            b = self.numbers(shape[0], rank)
            self.tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            if len(shape) == 4:  # PyTorch's order of axes
                self.tensors[f"{module}.lora_B.weight"] = b[:, :, None, None]
                a = a.transpose(0, 2, 3, 1)
            delta = (b @ a.reshape(rank, -1)).reshape(shape) * (12 / rank if scale is None else scale)
            length = None
            if self.config.get("use_dora"):
                length = np.abs(self.numbers(shape[0])) + 1
                self.tensors[f"{module}.lora_magnitude_vector"] = length
            self.updates.append((f"{module}.weight", self._update(delta, length)))
        return self

    def _update(self, delta: np.ndarray, length: np.ndarray | None, axis: int = 1) -> Update:
        def update(weight: np.ndarray) -> np.ndarray:
            weight = weight + delta
            if length is None:
                return weight
            return weight * np.expand_dims(length, axis) / np.sqrt((weight**2).sum(axis, keepdims=True))

        return update

    def embedding(self, module: str, rank: int = 4) -> Trained:
        rows, columns = self.base[f"{module}.weight"].shape
        a, b = self.numbers(rank, rows), self.numbers(columns, rank)
        self.tensors |= {f"{module}.lora_embedding_A": a, f"{module}.lora_embedding_B": b}
        length = None
        if self.config.get("use_dora"):
            length = np.abs(self.numbers(columns)) + 1
            self.tensors[f"{module}.lora_magnitude_vector"] = length
        self.updates.append((f"{module}.weight", self._update((b @ a).T * 12 / rank, length, axis=0)))
        return self

    def whole(self, *names: str) -> Trained:
        for name in names:
            value = self.numbers(*self.base[name].shape)
            self.tensors[name] = value
            self.updates.append((name, lambda _, value=value: value))
        return self

    def low_rank_bias(self, module: str, scale: float) -> Trained:
        value = self.numbers(*self.base[f"{module}.bias"].shape)
        self.tensors[f"{module}.lora_B.bias"] = value
        self.updates.append((f"{module}.bias", lambda bias: bias + value * scale))
        return self

    def applied(self, floats: Tensors) -> Tensors:
        """The fine-tuned model. PEFT leaves the head as it was when it trains the embedding by LoRA."""
        floats = dict(floats)
        if f"{EMBEDDING}.lora_embedding_A" in self.tensors and not self.config.get("ensure_weight_tying"):
            floats.setdefault(f"{HEAD}.weight", floats[f"{EMBEDDING}.weight"])
        for name, update in self.updates:
            floats[name] = mx.array(update(np.array(floats[name].astype(mx.float32))))
        return floats

    def save(self, folder: Path, rename: Callable[[str], str] = "base_model.model.".__add__) -> Path:
        return write_adapter(folder, {rename(name): tensor for name, tensor in self.tensors.items()}, **self.config)


def write_adapter(folder: Path, tensors: dict[str, Any], file: str = "adapter_model", **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / f"{file}.safetensors"), {name: mx.array(a) for name, a in tensors.items()})
    return folder


def opened(tensors: Tensors, *folders: Path) -> AdaptedSource:
    """A checkpoint in memory under adapters from folders."""
    return AdaptedSource(Memory(tensors), [Adapter(folder) for folder in folders])


def wide(family: str = "gemma2") -> tuple[Json, Tensors]:
    raw = wide_config_json(family)
    raw["text_config"]["num_hidden_layers"] = 3
    return raw, random_tensors(raw)


CASES: dict[str, Callable[[Tensors], Trained]] = {
    "LoRA": lambda t: Trained(t).low_rank(Q, K, O, GATE, DOWN),
    "LoRA of one part of a fused one": lambda t: Trained(t).low_rank(K, GATE),
    "different ranks": lambda t: Trained(t).low_rank(Q, rank=7).low_rank(K, GATE, rank=1),
    "rsLoRA": lambda t: Trained(t, use_rslora=True).low_rank(Q, DOWN, rank=9, scale=4).low_rank(O, rank=4, scale=6),
    "alpha by name": lambda t: (
        Trained(t, alpha_pattern={r"layers\.2\..*": 2, "down_proj": 8, "k_proj": 99, "proj": 77})
        .low_rank(Q, K, scale=0.5)
        .low_rank(DOWN, scale=2)
        .low_rank(GATE, scale=3)
    ),
    "DoRA": lambda t: Trained(t, use_dora=True).low_rank(Q, O, GATE, DOWN),
    "embedding": lambda t: Trained(t).embedding(EMBEDDING).low_rank(Q),
    "embedding DoRA": lambda t: Trained(t, use_dora=True).embedding(EMBEDDING),
    "head tied by PEFT": lambda t: Trained(t, ensure_weight_tying=True).embedding(EMBEDDING),
    "biases": lambda t: (
        Trained(t, bias="all")
        .whole(f"{VISION_LAYER}.mlp.fc1.bias", f"{VISION_LAYER}.layer_norm1.bias", f"{CONNECTOR}.bias")
        .low_rank(f"{VISION_LAYER}.self_attn.out_proj")
        .low_rank_bias(f"{VISION_LAYER}.self_attn.out_proj", 3)
    ),
    "modules to save": lambda t: Trained(t).whole(f"{CONNECTOR}.weight", f"{CONNECTOR}.bias").low_rank(Q),
    "embedding to save": lambda t: Trained(t).whole(f"{EMBEDDING}.weight"),
    "part of a fused one to save": lambda t: Trained(t).whole(f"{K}.weight").low_rank(Q),
    "norm to save": lambda t: Trained(t).whole("language_model.model.norm.weight"),
    "vision": lambda t: Trained(t).low_rank(
        *(f"{VISION_LAYER}.self_attn.{part}_proj" for part in ("q", "v", "out")),
        *(f"{VISION_LAYER}.mlp.fc{number}" for number in (1, 2)),
        CONNECTOR,
    ),
    "vision embeddings": lambda t: Trained(t).embedding(POSITIONS).low_rank(PATCHES),
}
"""What makes an adapter of each kind for the float tensors of wide()."""

every_case = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


def agree(first: PaliGemma, second: PaliGemma) -> None:
    """On a short text, a long one (for which the CPU unpacks weights), and decoding through the cache."""
    assert distance(text_logits(first), text_logits(second)) <= TOLERANCE
    ids = random_ids(2, 30)
    assert distance(first.logits(pictures(first, 2), ids), second.logits(pictures(second, 2), ids)) <= TOLERANCE
    decoded = (greedy(model, pictures(model, 2), random_ids(2, 5), 4)[1] for model in (first, second))
    assert distance(*decoded) <= TOLERANCE


def is_packed(module: str, weight: mx.array) -> bool:
    return weight.shape[-1] % 64 == 0
