"""SigLIP's vision transformer (So400m/14): pictures to one feature vector for each patch of 14 x 14 pixels.

Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training"; code: big_vision `models/vit.py`.
No class token, learned positions, full attention, and no pooling head: PaliGemma reads the patches.

Letters of shapes: B pictures, H and W their height and width in pixels, N patches of a picture, C the tower's width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from .config import VisionConfig
from .linear import Linear
from .ops import device
from .ops.attention import attention
from .ops.gelu import gelu
from .residual import add, add_biased


class Stream(NamedTuple):
    """The residual stream [B, N, C] between two halves of a layer, in the dtype of activations and in float32. One
    kernel adds and writes both; a norm that has to make the copy takes one more."""

    hidden: mx.array
    wide: mx.array

    @classmethod
    def of(cls, hidden: mx.array) -> Stream:
        """Hidden states [B, N, C] with their copy."""
        return cls(hidden, hidden.astype(mx.float32))

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of activations."""
        return self.hidden.dtype

    def plus(self, y: mx.array, bias: mx.array | None) -> Stream:
        """The stream after the addition of y [B, N, C], and of a bias [C] if there is one."""
        return Stream(*(add(self.hidden, y) if bias is None else add_biased(self.hidden, y, bias)))


class LayerNorm(nn.LayerNorm):
    """In float32, with one rounding to the dtype of activations; MLX's kernel would round three times in bfloat16."""

    def __call__(self, x: Stream) -> mx.array:
        """[B, N, C] -> [B, N, C]."""
        return mx.fast.layer_norm(x.wide, self.weight, self.bias, self.eps).astype(x.dtype)


class Attention(nn.Module):
    """Every patch attends to every other: softmax(q @ k.T * head_dim ** -0.5) @ v for each head; query, key and value
    are one projection."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size, bias=True)
        self.out_proj = Linear(config.hidden_size, config.hidden_size, bias=True)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array | None]:
        """x [B, N, C] -> [B, N, C], and a bias [C] that is still to be added, if there is one."""
        batch, length, width = x.shape
        # [B, N, 3C] -> three of [B, heads, N, head_dim]
        projected = self.qkv_proj(x).reshape(batch, length, 3 * self.heads, -1).swapaxes(1, 2)
        query, key, value = mx.split(projected, 3, axis=1)
        mixed = attention(query, key, value, None, scale=query.shape[-1] ** -0.5)
        return self.out_proj.unbiased(mixed.swapaxes(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.fc1 = Linear(config.hidden_size, config.intermediate_size, bias=True)
        self.fc2 = Linear(config.intermediate_size, config.hidden_size, bias=True)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array | None]:
        """x [B, N, C] -> [B, N, C], and a bias [C] that is still to be added, if there is one."""
        return self.fc2.unbiased(gelu(*self.fc1.unbiased(x)))


class Block(nn.Module):
    """One layer: attention and MLP, each after a norm and added to its input."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def __call__(self, x: mx.array) -> mx.array:
        """x [B, N, C] -> [B, N, C]."""
        return self.forward(Stream.of(x)).hidden

    def forward(self, x: Stream) -> Stream:
        """The stream after the layer."""
        x = x.plus(*self.self_attn(self.layer_norm1(x)))
        return x.plus(*self.mlp(self.layer_norm2(x)))


class VisionTower(nn.Module):
    """Pictures to features of their patches, N = (H / patch_size) * (W / patch_size), in reading order.

    layers_at_once: see PaliGemma.layers_at_once.
    """

    def __init__(self, config: VisionConfig, layers_at_once: int | None = None):
        super().__init__()
        self.layers_at_once = layers_at_once
        self.patch_size = config.patch_size
        # A convolution whose stride is its kernel is a matrix product over flattened patches.
        self.patch_embedding = Linear(3 * config.patch_size**2, config.hidden_size, bias=True)
        self.position_embedding = mx.zeros((config.num_patches, config.hidden_size))
        self.layers = [Block(config) for _ in range(config.num_hidden_layers)]
        self.post_layernorm = LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, pixels: mx.array, run: Callable[[Block, mx.array], mx.array] | None = None) -> mx.array:
        """pixels float [B, H, W, 3] in -1..1 -> features [B, N, C] in the dtype of the weights. run: calls a layer, if
        that is not to be done plainly; training may compute it twice to save memory."""
        x = self.patch_embedding(patches(pixels.astype(self.position_embedding.dtype), self.patch_size))
        stream = Stream(*add(x, self.position_embedding))
        for index, layer in enumerate(self.layers):
            stream = layer.forward(stream) if run is None else Stream.of(run(layer, stream.hidden))
            if self.layers_at_once is not None and (index + 1) % self.layers_at_once == 0:
                device.evaluate(*stream)
        return self.post_layernorm(stream)


def patches(pixels: mx.array, size: int) -> mx.array:
    """Cut pixels [B, H, W, 3] into flattened patches [B, N, size * size * 3], each in the order (y, x, channel).

    size: side of a patch in pixels.
    """
    batch, height, width, channels = pixels.shape
    grid = pixels.reshape(batch, height // size, size, width // size, size, channels)
    return grid.swapaxes(2, 3).reshape(batch, -1, size * size * channels)
