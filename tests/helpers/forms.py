"""Small checkpoints in the forms in which other programs leave them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from helpers.models import (
    text_logits,
)
from pg_mlx import load_model

INDEX = "model.safetensors.index.json"


EMBEDDING = "language_model.model.embed_tokens"


def logits(path: Path) -> mx.array:
    return text_logits(load_model(path, dtype="float32"))
