"""The pass through the model that training differentiates: all rows side by side, without a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Inputs:
    """A batch as the pass reads it: arrays only, so that a compiled step can be used again for equal shapes.

    Images: `images` are pixels [I, H, W, 3] or features [I, N, D] (`encoded`), image_index int32 [B]. Text: ids
    int32 [B, T], a row's prefix, its suffix right behind it, and padding; prefix_lengths and lengths int32 [B]. The M
    tokens that are learnt: their row and the slot before them, targets and their weight in the loss, [M] each.
    """

    images: mx.array
    encoded: bool
    image_index: mx.array
    ids: mx.array
    prefix_lengths: mx.array
    lengths: mx.array
    row: mx.array
    slot: mx.array
    targets: mx.array
    weights: mx.array

    @classmethod
    def of(cls, batch: TrainingBatch, example_mean: bool = False, multiple: int = 1) -> Inputs:
        """example_mean: tokens weigh so that rows weigh alike. multiple: what T and M are padded to whole multiples of.

        The last suffix token, <eos>, predicts nothing and is not read.
        """
        prefix, suffix = batch.prefix_lengths, batch.suffix_lengths
        lengths = prefix + suffix - 1
        ids = np.zeros((batch.rows, _up(int(lengths.max()), multiple)), np.int32)
        for index, (start, stop) in enumerate(zip(prefix, lengths, strict=True)):
            ids[index, :start] = batch.prefix_ids[index, :start]
            ids[index, start:stop] = batch.suffix_ids[index, : stop - start]
        rows, slots = np.nonzero(np.arange(batch.suffix_ids.shape[1]) < suffix[:, None])
        weights = 1 / suffix[rows] if example_mean else np.ones(len(rows))
        room = (0, _up(len(rows), multiple) - len(rows))
        learnt = (rows, prefix[rows] - 1 + slots, batch.suffix_ids[rows, slots])
        row, slot, targets = (mx.array(np.pad(one, room).astype(np.int32)) for one in learnt)
        encoded = batch.features is not None
        images = batch.features if encoded else batch.pixels
        assert images is not None
        return cls(
            images=images,
            encoded=encoded,
            image_index=mx.array(batch.image_index, dtype=mx.int32),
            ids=mx.array(ids),
            prefix_lengths=mx.array(prefix.astype(np.int32)),
            lengths=mx.array(lengths.astype(np.int32)),
            row=row,
            slot=slot,
            targets=targets,
            weights=mx.array(np.pad(weights, room).astype(np.float32)),
        )


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def predicting_states(model: PaliGemma, inputs: Inputs, run: Run = plainly) -> mx.array:
    """The decoder's hidden states that predict the tokens to learn, [M, D], after the final norm.

    As big_vision: prefix tokens see image and prefix, suffix tokens also the suffix before them, and padding stands at
    the end, where nobody sees it. run: how layers are called.
    """
    decoder = model.language_model
    features = inputs.images if inputs.encoded else model.encode_image(inputs.images, run)
    text = decoder.embed(inputs.ids)
    x = mx.concatenate([features[inputs.image_index].astype(text.dtype), text], axis=1)
    images = features.shape[1]
    prefix, used = images + inputs.prefix_lengths, images + inputs.lengths
    windows = [decoder.window(index) for index in range(len(decoder.layers))]
    masks = {window: prefix_lm_mask(x.shape[1], prefix, used, window) for window in set(windows)}
    for layer, window in zip(decoder.layers, windows, strict=True):
        x = run(layer, x, masks[window])
    return decoder.norm(x[inputs.row, images + inputs.slot])
