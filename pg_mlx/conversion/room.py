"""The space on the disk that a conversion needs."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from ..checkpoint.open import Checkpoint
from .plan import Plan
from .tokenizer_json import JSON_PER_MODEL_BYTE

SMALL_FILES_BYTES = 1 << 17
"""More than config.json, the model card with its picture, the index and the other small files take together."""


def header_bytes(plan: Plan) -> int:
    """Room for the head of a shard that held every tensor, as ShardWriter rounds it."""
    return -(-(4096 + sum(4 * (len(module.name) + 120) for module in plan.modules)) // 64) * 64


def side_bytes(checkpoint: Checkpoint, masks: Mapping[str, mx.array]) -> int:
    """Everything beside the weights. masks: weights of the mask decoder that will be written."""
    given = {name: path.stat().st_size for name, path in checkpoint.side_files.items()}
    made = 0
    if "tokenizer.json" not in given:
        made = given.get("tokenizer.model", 0) * JSON_PER_MODEL_BYTE
    return sum(given.values()) + made + sum(array.nbytes for array in masks.values()) + SMALL_FILES_BYTES
