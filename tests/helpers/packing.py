"""Packed tensors, and what they stand for."""

from __future__ import annotations

import mlx.core as mx

from pg_mlx.quantization import Quantization

TEXT, VISION = "language_model.model", "vision_tower.vision_model"


FOUR, EIGHT = Quantization(4, 64), Quantization(8, 64)


PARTS = ("weight", "scales", "biases")


TOLERANCE = 1e-4
"""Of logits in float32: a packed product sums in another order than one of floats."""


def padded(name: str, tensor: mx.array) -> mx.array:
    """With SigLIP's MLP 384 wide."""
    if ".mlp.fc1." in name:
        return mx.concatenate([tensor, mx.zeros((84, *tensor.shape[1:]), tensor.dtype)])
    if name.endswith(".mlp.fc2.weight"):
        return mx.concatenate([tensor, mx.zeros((tensor.shape[0], 84), tensor.dtype)], axis=1)
    return tensor
