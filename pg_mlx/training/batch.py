"""TrainingBatch: what one step of training reads."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True)
class TrainingBatch:
    """Rows of a batch with their pictures. Prefix and suffix are padded apart; a row's suffix stands right behind its
    own prefix when it is read."""

    pixels: mx.array | None
    """float32 [I, H, W, 3], the I different pictures of the batch; None when features are given."""
    features: mx.array | None
    """[I, N, D], what encode_image gives; None when pixels are given."""
    image_index: list[int]
    """row -> picture, length B."""
    prefix_ids: np.ndarray
    """int32 [B, P], right-padded with 0, no <image> placeholders; <bos> text newline."""
    prefix_lengths: np.ndarray
    """int32 [B]."""
    suffix_ids: np.ndarray
    """int32 [B, S], right-padded with 0; text <eos>."""
    suffix_lengths: np.ndarray
    """int32 [B]."""
