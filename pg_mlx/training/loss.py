"""The loss of fine-tuning: cross entropy of suffix tokens, each predicted from what stands before it.

Prefix tokens are never learnt, <eos> is. `mean="token"` (transformers) weighs every token alike, `mean="example"`
(big_vision, `trainers/proj/paligemma/train.py`) every row. Sums and counts are returned, not means, so that
micro-batches and processes add up to one batch exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx

from ..errors import InputError
from ..gemma import cap_logits
from ..ops import device
from ..paligemma import PaliGemma
from .batch import TrainingBatch
from .forward import Inputs, Run, plainly, predicting_states

Mean = Literal["token", "example"]

PIECE_VALUES = {"cpu": 4 << 20, "gpu": 16 << 20}
"""Logits that are computed at a time: of PaliGemma's 257,216 ids 16 tokens, or 65. Several arrays of that size exist
together, on the CPU in float32. Each piece reads the head's table three times, which pays with more tokens."""


@dataclass(frozen=True)
class LossOptions:
    """What is minimised. Making one raises InputError for impossible values."""

    mean: Mean = "token"
    label_smoothing: float = 0.0
    """How much of the target's probability the V - 1 other ids share, as in big_vision; from 0 to less than 1."""
    final_softcap: bool = True
    """Whether logits are capped as config.json says (PaliGemma 2). big_vision fine-tunes without the cap."""
    piece: int | None = None
    """Suffix tokens whose logits are computed at a time. None: as many as PIECE_VALUES allow."""

    def __post_init__(self) -> None:
        if self.mean not in ("token", "example"):
            raise InputError(f"the mean of the loss is {self.mean!r}, but must be token or example")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing is {self.label_smoothing}, but must be from 0 to less than 1")
        if self.piece is not None and self.piece < 1:
            raise InputError(f"the head computes {self.piece} tokens at a time, but must compute at least 1")

    def tokens_at_once(self, vocab_size: int) -> int:
        """How many tokens a piece of the head has."""
        if self.piece is not None:
            return self.piece
        return max(1, PIECE_VALUES["gpu" if device.gpu_ops() else "cpu"] // vocab_size)


def loss_sum(model: PaliGemma, inputs: Inputs, options: LossOptions = LossOptions(), run: Run = plainly) -> mx.array:
    """The sum of the loss over a batch, float32 []: its mean is this divided by `loss_count`.

    inputs: weighted for the mean that is wanted (`inputs_of`). run: how a layer is called (forward.py).
    """
    predicting = predicting_states(model, inputs, run)
    total, done = mx.array(0.0), list[mx.array]()
    tokens = options.tokens_at_once(model.config.text.vocab_size)
    for first in range(0, predicting.shape[0], tokens):
        some = slice(first, first + tokens)
        piece = _Piece(model, options, inputs.targets[some], inputs.weights[some])
        hidden = predicting[some]
        if done:  # one piece after the other, so that the logits of one only are in memory
            hidden = mx.depends([hidden], done)[0]
        loss, done = piece(hidden)
        total = total + loss
    return total


def inputs_of(batch: TrainingBatch, options: LossOptions, multiple: int = 1) -> Inputs:
    """A batch as `loss_sum` reads it; multiple: as for Inputs.of."""
    return Inputs.of(batch, options.mean == "example", multiple)


def loss_count(batch: TrainingBatch, options: LossOptions = LossOptions()) -> int:
    """By what the sum of the loss is divided: suffix tokens, or rows for the example mean."""
    return batch.suffix_tokens if options.mean == "token" else batch.rows


class _Piece:
    """The loss of some tokens, and its gradients, computed together: the logits are forgotten before the backward pass
    and not computed again.

    targets int32 [M], weights float32 [M].
    """

    def __init__(self, model: PaliGemma, options: LossOptions, targets: mx.array, weights: mx.array):
        self._decoder, self._options = model.language_model, options
        self._targets, self._weights = targets, weights

    def __call__(self, hidden: mx.array) -> tuple[mx.array, list[mx.array]]:
        """hidden [M, D] -> the weighted sum of the loss, float32 [], and what is computed with it."""
        table = self._decoder.head_table
        inputs = [hidden]
        if not device.traces_gradients():
            loss = self._loss(hidden)
            device.evaluate(loss)
            return loss, [loss]
        if "weight" in table.trainable_parameters():
            inputs.append(table.weight)

        def compute(*inputs: mx.array) -> tuple[mx.array, ...]:
            loss, gradients = mx.value_and_grad(lambda inputs: self._loss(*inputs))(inputs)
            return (loss, *gradients)

        def gradients(_: object, cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]) -> Any:
            found = tuple((cotangents[0] * gradient).astype(gradient.dtype) for gradient in outputs[1:])
            return found if len(found) > 1 else found[0]

        function: Any = mx.custom_function(compute)
        function.vjp(gradients)
        outputs = function(*inputs)
        return outputs[0], list(outputs)

    def _loss(self, hidden: mx.array, weight: mx.array | None = None) -> mx.array:
        decoder, smoothing = self._decoder, self._options.label_smoothing
        logits = (decoder.head_table.as_head(hidden) if weight is None else hidden @ weight.T).astype(mx.float32)
        cap = decoder.config.final_logit_softcapping
        if cap is not None and self._options.final_softcap:
            logits = cap_logits(logits, cap)
        target = mx.take_along_axis(logits, self._targets[:, None], axis=-1)[:, 0]
        loss = mx.logsumexp(logits, axis=-1)
        if smoothing:
            share = smoothing / (logits.shape[-1] - 1)  # each other id's
            loss = loss - (1 - smoothing - share) * target - share * logits.sum(axis=-1)
        else:
            loss = loss - target
        return (loss * self._weights).sum()
