"""The jobs that the benchmarks of training share: the bundled demo, and PaliGemma 2 3B's widths with 2 + 2 layers."""

from __future__ import annotations

import pg_mlx  # noqa: F401  # isort: skip  (before mlx.core: it puts a fast BLAS first)

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from pg_mlx import PaliGemma, load_model
from pg_mlx.config import PaliGemmaConfig
from pg_mlx.demo import CHECKPOINT
from pg_mlx.training.batch import TrainingBatch

WIDE = {
    "model_type": "paligemma",
    "text_config": {
        "model_type": "gemma2",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 257216,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
}
"""config.json of a model as wide as PaliGemma 2 3B, with two layers in tower and decoder."""


@dataclass(frozen=True)
class Job:
    """A step's batch. rows, tokens of a row with its image tokens, and suffix tokens of a row."""

    model: str
    rows: int
    tokens: int
    suffix: int

    def __str__(self) -> str:
        return f"{self.model}, {self.rows} rows of {self.tokens} tokens, {self.suffix} learnt"

    def batch(self, model: PaliGemma, seed: int = 0) -> TrainingBatch:
        """Random text about random pictures, whose features are computed here."""
        random = np.random.default_rng(seed)
        side, images = model.config.vision.image_size, model.config.vision.num_patches
        prefix = self.tokens - images - self.suffix + 1
        features = model.encode_image(mx.array(random.uniform(-1, 1, (self.rows, side, side, 3)).astype(np.float32)))
        mx.eval(features)

        def ids(length: int) -> np.ndarray:
            return random.integers(3, 1000, (self.rows, length)).astype(np.int32)

        def all_of(length: int) -> np.ndarray:
            return np.full(self.rows, length, np.int32)

        return TrainingBatch(
            None, features, list(range(self.rows)), ids(prefix), all_of(prefix), ids(self.suffix), all_of(self.suffix)
        )


def make_model(name: str, dtype: mx.Dtype = mx.float32) -> PaliGemma:
    """ "demo", or "wide": a million random weights, again and again, as wide as PaliGemma 2 3B."""
    if name == "demo":
        return load_model(CHECKPOINT, dtype=dtype)
    config = PaliGemmaConfig.from_dict(WIDE)
    model, some = PaliGemma(config, dtype=dtype), mx.random.normal((1 << 20,), key=mx.random.key(0))

    def filled(array: mx.array) -> mx.array:
        if array.ndim < 2:
            return array
        weight = (mx.tile(some, -(-array.size // some.size))[: array.size] * array.shape[-1] ** -0.5).astype(dtype)
        weight = weight.reshape(array.shape)
        mx.eval(weight)
        return weight

    model.update(tree_map(filled, model.parameters()))
    mx.eval(model.parameters())
    return model
