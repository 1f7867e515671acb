"""The bridge from picture to text: one linear layer from SigLIP's width to the decoder's.

**The scale story.** Gemma multiplies its token embeddings by sqrt(hidden_size). The original code
(big_vision, `models/ppp/gemma.py`) does so inside the lookup of the text table and then puts the projected
image features in front *as they are*. transformers (before 5) let Gemma multiply everything it was handed. So its
connector first divided the image features by sqrt(hidden_size), and the two cancelled. Copying one half
of that pair is the mistake most reimplementations make: with the division alone the pictures are
45 times too quiet, with the multiplication alone 45 times too loud. Here, as in the original, image
features are never scaled, and text embeddings are scaled once, at lookup. In 16-bit arithmetic this is also more exact:
dividing and multiplying back rounds twice. `docs/scaling.md` has the figures, `tests/benchmarks/test_scaling.py`
the proof.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .linear import Linear


class Connector(nn.Module):
    """Features of the vision tower to inputs of the decoder, ready to stand beside scaled text embeddings."""

    def __init__(self, vision_width: int, hidden_size: int):
        super().__init__()
        self.linear = Linear(vision_width, hidden_size, bias=True)

    def __call__(self, features: mx.array) -> mx.array:
        """features [B, N, C] -> [B, N, D]."""
        return self.linear(features)
