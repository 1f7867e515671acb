"""The numbers of a quality card, computed from the hidden states of source and result for the same texts.

Memory: ROWS rows of both embeddings in the compute dtype, and a few arrays of POSITIONS x ROWS logits; never the
logits of the whole vocabulary, which are a megabyte a position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .layerwise import AnsweredPrompt, Streamed

ROWS, POSITIONS = 16384, 256
"""Rows of the vocabulary, and positions, whose logits are compared at a time: 16 MiB of float32."""


class Reading(NamedTuple):
    """A model whose blocks have been freed, and its outputs for some pictures and for T positions in answers."""

    model: Streamed
    features: Sequence[mx.array]
    """[1, N, D] for each picture, in the compute dtype."""
    hidden: mx.array
    """[T, D], final-normed, in the compute dtype."""


class Predictions(NamedTuple):
    """A comparison of two models at each of T positions."""

    kl: np.ndarray
    """float64 [T]: KL(source || result) in nats."""
    source_top: np.ndarray
    """int [T]: the source's most likely token."""
    result_top: np.ndarray
    """int [T]: the result's most likely token."""


def predict(source: Reading, result: Reading, vocabulary: int) -> Predictions:
    """Compare two next-token distributions over the first `vocabulary` ids.

    The vocabulary comes in slices. With a and b for the logits of source and result, each slice gives max a, max b,
    sum exp(a - max a), sum exp(b - max b), sum exp(a - max a) (a - b), and where the maxima are. From these
    follows KL = sum p (a - b) - log sum exp a + log sum exp b, put together in float64.
    """
    slices = []
    for start in range(0, vocabulary, ROWS):
        stop = min(start + ROWS, vocabulary)
        heads = source.model.head(start, stop), result.model.head(start, stop)
        parts = []
        for first in range(0, len(source.hidden), POSITIONS):
            positions = slice(first, first + POSITIONS)
            a, b = heads[0](source.hidden[positions]), heads[1](result.hidden[positions])
            max_a, max_b = a.max(axis=-1), b.max(axis=-1)
            exp_a, exp_b = mx.exp(a - max_a[:, None]), mx.exp(b - max_b[:, None])
            sums = [x.sum(axis=-1) for x in (exp_a, exp_b, exp_a * (a - b))]
            tops = [start + x.argmax(axis=-1) for x in (a, b)]  # float32 holds these exactly
            parts.append(np.array(mx.stack([max_a, max_b, *sums, *tops]), dtype=np.float64))
        slices.append(np.concatenate(parts, axis=1))
    max_a, max_b, sum_a, sum_b, sum_ab, top_a, top_b = np.stack(slices, axis=1)  # [slices, T] each
    log_a = np.logaddexp.reduce(max_a + np.log(sum_a))
    log_b = np.logaddexp.reduce(max_b + np.log(sum_b))
    kl = (np.exp(max_a - log_a) * sum_ab).sum(axis=0) - log_a + log_b
    every = np.arange(kl.size)
    best_a, best_b = top_a[max_a.argmax(axis=0), every], top_b[max_b.argmax(axis=0), every]
    return Predictions(np.maximum(kl, 0), best_a.astype(int), best_b.astype(int))


def mean_and_error(values: np.ndarray, lengths: Sequence[int]) -> tuple[float, float]:
    """The mean of float64 values that lie in runs of these lengths, and its standard error if runs are independent."""
    mean = float(values.mean())
    runs = np.split(values - mean, np.cumsum(lengths)[:-1])
    return mean, float(np.sqrt(sum(run.sum() ** 2 for run in runs)) / values.size)


def box_drifts(
    source: Reading,
    result: Reading,
    texts: Sequence[AnsweredPrompt],
    sizes: Sequence[tuple[int, int]],
    locations: range,
) -> list[float]:
    """Pixels between the two models' preferred locations, at every position whose answer has one.

    sizes: width and height of each picture. locations: the ids of the location tokens.
    """
    positions, extents, position = [], [], 0
    for text in texts:
        width, height = sizes[text.picture]
        run = 0
        for token in text.answer:
            if token in locations:
                positions.append(position)
                extents.append(width if run % 2 else height)  # y0, x0, y1, x1
                run += 1
            else:
                run = 0
            position += 1
    if not positions:
        return []
    preferred = [
        np.array(one.model.head(locations.start, locations.stop)(one.hidden[mx.array(positions)]).argmax(axis=-1), int)
        for one in (source, result)
    ]
    return (np.abs(preferred[0] - preferred[1]) / (len(locations) - 1) * np.array(extents)).tolist()


def feature_error(source: Reading, result: Reading) -> tuple[float, float]:
    """RMS of the features' difference relative to RMS of the source's, and the mean cosine of a row."""
    sums = mx.zeros(3)
    for one, other in zip(source.features, result.features, strict=True):
        a, b = one.astype(mx.float32), other.astype(mx.float32)
        norms = mx.linalg.norm(a, axis=-1) * mx.linalg.norm(b, axis=-1)
        cosines = (a * b).sum(axis=-1) / mx.maximum(norms, 1e-20)
        sums += mx.stack([mx.square(a - b).mean(), mx.square(a).mean(), cosines.mean()])
    difference, total, cosine = np.array(sums, dtype=np.float64).tolist()
    return (difference / max(total, 1e-20)) ** 0.5, cosine / len(source.features)
