"""The pass through the model that training differentiates: all rows side by side, without a cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..attention_mask import prefix_lm_mask
from ..paligemma import PaliGemma
from .batch import TrainingBatch

Run = Callable[..., mx.array]
"""(layer, x, *constants) -> layer(x, *constants): how a layer of tower or decoder is called."""


def plainly(layer: nn.Module, x: mx.array, *constants: Any) -> mx.array:
    """The layer's result. What its gradient needs is kept from the forward to the backward pass."""
    return layer(x, *constants)


def checkpointed(layer: nn.Module, x: mx.array, *constants: Any) -> mx.array:
    """The layer's result, equal bit by bit. Only its input is kept; the backward pass computes the layer again."""

    def call(parameters: Any, x: mx.array) -> mx.array:
        layer.update(parameters)
        return layer(x, *constants)

    trainable = layer.trainable_parameters()
    result = mx.checkpoint(call)(trainable, x)
    layer.update(trainable)  # mx.checkpoint has put its own handles there
    return result


def image_features(model: PaliGemma, batch: TrainingBatch, run: Run = plainly) -> mx.array:
    """Features of the batch's pictures, [I, N, D]: the given ones, or those of its pixels."""
    if batch.features is not None:
        return batch.features
    assert batch.pixels is not None
    return model.encode_image(batch.pixels, run)


def hidden_states(model: PaliGemma, batch: TrainingBatch, run: Run = plainly) -> mx.array:
    """The decoder's hidden states at text positions, [B, T, D], after the final norm.

    T is as long as the longest row. A row's prefix begins at slot 0 and its suffix right behind it; the last suffix
    token, <eos>, predicts nothing and is not read. As big_vision: prefix tokens see image and prefix, suffix tokens
    also the suffix before them, and padding stands at the end, where nobody sees it.
    """
    decoder = model.language_model
    features = image_features(model, batch, run)
    images = features.shape[1]
    ids = text_ids(batch)
    text = decoder.embed(mx.array(ids))
    x = mx.concatenate([features[mx.array(batch.image_index)].astype(text.dtype), text], axis=1)
    prefix = mx.array(images + batch.prefix_lengths)
    used = mx.array(images + batch.prefix_lengths + batch.suffix_lengths - 1)
    masks = {window: prefix_lm_mask(x.shape[1], prefix, used, window) for window in windows(model)}
    for index, layer in enumerate(decoder.layers):
        x = run(layer, x, masks[decoder.window(index)])
    return decoder.norm(x[:, images:])


def windows(model: PaliGemma) -> set[int | None]:
    """The sliding windows that the decoder's layers have; None for full attention."""
    return {model.language_model.window(index) for index in range(len(model.language_model.layers))}


def text_ids(batch: TrainingBatch) -> np.ndarray:
    """What the decoder reads of the text, int32 [B, T]: prefix and suffix of each row without a gap, then zeros."""
    used = batch.prefix_lengths + batch.suffix_lengths - 1
    ids = np.zeros((batch.rows, int(used.max())), np.int32)
    for row, (prefix, length) in enumerate(zip(batch.prefix_lengths, used, strict=True)):
        ids[row, :prefix] = batch.prefix_ids[row, :prefix]
        ids[row, prefix:length] = batch.suffix_ids[row, : length - prefix]
    return ids
