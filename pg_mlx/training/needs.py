"""How much memory training will take, computed from shapes alone, before any weight is read.

What a layer keeps from the forward to the backward pass is counted array by array. What exists for a moment beside it
was measured (python -m benchmarks.training_memory), in multiples of the widest arrays. `Shape` is the largest
micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..config import PaliGemmaConfig
from .loss import LossOptions


@dataclass(frozen=True)
class Shape:
    """The largest micro-batch of a run. rows: B. tokens: of the longest row, image tokens included. suffix: tokens that
    are learnt, of all rows together. images: pictures that go through the tower within the step; 0 if it is frozen, for
    then their features are given."""

    rows: int
    tokens: int
    suffix: int
    images: int = 0


@dataclass(frozen=True)
class Needs:
    """Bytes that training holds at its peak. weights: the model's. learnt: what is learnt, with gradients and the
    optimizer's moments. activations: of the forward and backward pass."""

    weights: int
    learnt: int
    activations: int

    @property
    def total(self) -> int:
        """All of them together."""
        return self.weights + self.learnt + self.activations


def training_needs(
    config: PaliGemmaConfig,
    shape: Shape,
    *,
    weights: int,
    learnt: int,
    dtype: mx.Dtype = mx.float32,
    checkpoint: bool = False,
    full: bool = False,
    dropout: bool = False,
    packed: bool = False,
    loss: LossOptions | None = None,
) -> Needs:
    """What steps of this shape take.

    weights: bytes of the model as it is loaded. learnt: how many numbers are learnt (adapting.count_learnt, or for a
    full fine-tuning all that are not frozen). dtype: of activations. packed: whether the decoder's weights are packed,
    so that two matrices are unpacked at a time.
    """
    activations = max(
        _layers(config, shape, dtype.size, checkpoint, dropout),
        _head(config, shape, dtype.size, checkpoint, dropout, loss or LossOptions(), full),
    )
    if shape.images:
        activations = max(
            activations + _tower_kept(config, shape, dtype.size, checkpoint),
            _tower(config, shape, dtype.size, checkpoint),
        )
    if packed:
        activations += 2 * 2 * config.text.intermediate_size * config.text.hidden_size * dtype.size
    return Needs(weights, _learnt(learnt, dtype.size, full), activations)


def _learnt(count: int, itemsize: int, full: bool) -> int:
    """float32: gradients, both moments, and while a step is taken new ones of each. The weights themselves too, unless
    the model has them in float32."""
    copies = 4 * (3 if full and itemsize == 4 else 4)
    return count * (copies + (itemsize if full else 6))


def _decoder_layer(config: PaliGemmaConfig, tokens: int, dropout: bool) -> int:
    """Values that a decoder layer keeps for each token: inputs and results of its norms and products, the scores of
    its attention, gate and up and their product."""
    text = config.text
    heads = (2 * text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    widths = (6 if text.is_gemma2 else 4) * text.hidden_size
    kept = widths + heads + 3 * text.intermediate_size + 2 * text.num_attention_heads * tokens
    if dropout:  # the inputs of products once more
        kept += 2 * text.hidden_size + text.num_attention_heads * text.head_dim + text.intermediate_size
    return kept


def _layers(config: PaliGemmaConfig, shape: Shape, itemsize: int, checkpoint: bool, dropout: bool) -> int:
    """When the backward pass is in the last layer."""
    text = config.text
    scores = 4 * text.num_attention_heads * shape.tokens
    moment = (13 if checkpoint else 11) * text.intermediate_size + (11 if checkpoint else 7) * text.hidden_size + scores
    kept = _decoder_layer(config, shape.tokens, dropout)
    layers = text.num_hidden_layers
    kept = layers * text.hidden_size + kept if checkpoint else layers * kept
    return shape.rows * shape.tokens * itemsize * (kept + moment)


def _head(
    config: PaliGemmaConfig,
    shape: Shape,
    itemsize: int,
    checkpoint: bool,
    dropout: bool,
    loss: LossOptions,
    full: bool,
) -> int:
    """When a piece of the head is computed: its logits in float32, with what makes their gradient."""
    text = config.text
    kept = text.hidden_size if checkpoint else _decoder_layer(config, shape.tokens, dropout)
    pieces = min(shape.suffix, loss.tokens_at_once(text.vocab_size)) * text.vocab_size * HEAD_COPIES * 4
    table = text.vocab_size * text.hidden_size * 2 * itemsize if full else 0  # its gradient, and the sum of two
    return shape.rows * shape.tokens * itemsize * text.num_hidden_layers * kept + pieces + table


HEAD_COPIES = 6
"""Arrays as large as the logits of a piece that exist at a time."""


def _tower_kept(config: PaliGemmaConfig, shape: Shape, itemsize: int, checkpoint: bool) -> int:
    """What the tower's layers keep while the decoder runs."""
    vision = config.vision
    kept = vision.hidden_size if checkpoint else _tower_layer(config)
    return shape.images * vision.num_patches * itemsize * vision.num_hidden_layers * kept


def _tower_layer(config: PaliGemmaConfig) -> int:
    vision = config.vision
    return 8 * vision.hidden_size + 2 * vision.intermediate_size + 2 * vision.num_attention_heads * vision.num_patches


def _tower(config: PaliGemmaConfig, shape: Shape, itemsize: int, checkpoint: bool) -> int:
    """When the backward pass is in the tower's last layer, and the decoder's arrays are gone."""
    vision = config.vision
    scores = 4 * vision.num_attention_heads * vision.num_patches
    moment = (
        8 * vision.intermediate_size + 8 * vision.hidden_size + scores + (_tower_layer(config) if checkpoint else 0)
    )
    return _tower_kept(config, shape, itemsize, checkpoint) + shape.images * vision.num_patches * itemsize * moment
