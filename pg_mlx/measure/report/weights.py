"""Parts about real weights: the largest activations, and what folding norms into the next matrix would cost."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from ...checkpoint.load import load
from ...demo import CHECKPOINT, PICTURES
from ...linear import Linear
from ...paligemma import PaliGemma
from ...processor import Processor
from ...quantization import Quantization
from ..experiments import maxima
from ..kernels import relative_error
from .context import Context, Found, NotHereError


def _given(context: Context) -> tuple[PaliGemma, Processor, str]:
    context.release()
    if context.given is None:
        return (*load(CHECKPOINT), "the demo")
    return (*context.given(), "the given model")


def float16(context: Context) -> Found:
    """Whether float16 holds the activations of real weights."""
    model, processor, name = _given(context)
    pixels = mx.array(processor.pixels(str(PICTURES[0])))[None]
    said, figures = maxima(model, pixels, processor.prompt_ids("caption en"))
    return Found(f"With {name}: {said[0].lower()}{said[1:]}", figures)


def folding(context: Context) -> Found:
    """The error of packed gate and up matrices, with the norm's weight before them or folded into them, for random
    inputs; in the first, middle and last layer. Weights that are packed already favour the former."""
    model, _, name = _given(context)
    layers = model.language_model.layers
    figures: dict[str, Any] = {}
    for bits in (4, 6, 8):
        quantization = Quantization(bits, 64)
        before, folded = [], []
        for index in sorted({0, len(layers) // 2, len(layers) - 1}):
            matrix = layers[index].mlp.gate_up_proj
            if not isinstance(matrix, Linear):
                raise NotHereError("gate and up of this model are packed apart")
            weight, norm = matrix.dequantized(mx.float32), layers[index].pre_mlp_norm.weight
            if not quantization.fits(weight.shape[1]):
                raise NotHereError("the widths of this model fit no packing")
            x = mx.random.normal((64, weight.shape[1]))
            exact = (x * norm) @ weight.T
            before.append(relative_error((x * norm) @ _repacked(quantization, weight).T, exact))
            folded.append(relative_error(x @ _repacked(quantization, weight * norm).T, exact))
        figures[f"{bits}_bits"] = {"before": before, "folded": folded}
    ratios = {bits: float(np.mean(one["folded"]) / np.mean(one["before"])) for bits, one in figures.items()}
    said = ", ".join(f"{ratio:.2f} times in {bits.replace('_', ' ')}" for bits, ratio in ratios.items())
    return Found(f"With {name}: folding makes the error {said}.", figures)


def _repacked(quantization: Quantization, weight: mx.array) -> mx.array:
    """A weight [outputs, columns] as it is after packing."""
    return quantization.unpack(quantization.pack(weight)).astype(mx.float32)
