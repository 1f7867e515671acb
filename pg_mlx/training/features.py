"""Features of pictures for a frozen vision tower: each picture is encoded once, while there is room."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    import numpy as np

FEATURE_BYTES = 2 << 30
"""Default limit: some 1,700 pictures of 224 px or 400 of 448 px (3B, 16 bits)."""


class ImageFeatures:
    """Keeps features by the name of their picture until a number of bytes is reached. What does not fit is encoded
    again each time: in training every picture comes as often as any other, so none is worth dropping for another."""

    def __init__(self, encode: Callable[[mx.array], mx.array], limit_bytes: int = FEATURE_BYTES):
        """encode: float32 [I, H, W, 3] -> [I, N, D], a model's encode_image. It is called outside of gradients."""
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._encode = encode
        self._held: dict[str, mx.array] = {}

    def knows(self, name: str) -> bool:
        """Whether the features of this picture are kept."""
        return name in self._held

    def features(self, pixels: Mapping[str, np.ndarray | None]) -> mx.array:
        """[I, N, D], evaluated, in the order of the mapping.

        pixels: by name float32 [H, W, 3], or None for pictures that are known. Names that begin with a zero byte are
        of pictures that do not come again, and are not kept.
        """
        found = {name: self._held[name] for name in pixels if name in self._held}
        missing = [(name, image) for name, image in pixels.items() if name not in found and image is not None]
        for name, image in missing:  # each alone: with other neighbours a product may round otherwise
            encoded = self._encode(mx.array(image)[None])
            mx.eval(encoded)
            found[name] = encoded[0]
            self._keep(name, encoded[0])
        features = mx.stack([found[name] for name in pixels])
        mx.eval(features)
        return features

    def _keep(self, name: str, row: mx.array) -> None:
        if name.startswith("\0") or self.held_bytes + row.nbytes > self.limit_bytes:
            return
        row = mx.contiguous(row)
        mx.eval(row)  # a copy, so that it does not hold its neighbours
        self._held[name] = row
        self.held_bytes += row.nbytes
