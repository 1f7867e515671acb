"""Pictures as the model reads them, each encoded once, however many questions are asked about it."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from ..paligemma import PaliGemma

if TYPE_CHECKING:
    import numpy as np

FEATURE_BYTES = 256 << 20
"""Default limit of a FeatureCache: 256 pictures of 224 px, 64 of 448 px or 16 of 896 px (3B, 16 bits)."""

PATCHES = 8192
"""Patches that go through the vision tower in one pass: 32 pictures of 224 px, 8 of 448 px or 2 of 896 px. More
would take more scratch memory (17 kB each in 16 bits), and not less time."""


class Picture:
    """pixels: float32 [H, W, 3] in -1..1, as `Processor.pixels` makes them. size: width and height of the picture that
    they were made from, in whose pixels regions are given; those of `pixels` if not given."""

    def __init__(self, pixels: np.ndarray, size: tuple[int, int] | None = None):
        self.pixels = pixels
        self.size = size or (pixels.shape[1], pixels.shape[0])
        self.digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
        """Equal for equal pixels. What the model reads decides, not the file it came from."""


class FeatureCache:
    """Features of the pictures that one model saw last, found by the pixels, up to a number of bytes."""

    def __init__(self, model: PaliGemma, limit_bytes: int = FEATURE_BYTES):
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._model = model
        self._features: OrderedDict[bytes, mx.array] = OrderedDict()  # least recently used first

    def features(self, pictures: Sequence[Picture]) -> list[mx.array]:
        """Features [N, D] of each picture, evaluated. Those not yet known go through the model together."""
        known: dict[bytes, mx.array] = {}
        for passed in self._passes(pictures, known):
            mx.eval(passed)
        features = [known[picture.digest] for picture in pictures]
        mx.eval(features)  # those that were begun
        return features

    def begin(self, pictures: Sequence[Picture]) -> None:
        """Start to encode those not yet known, behind what is under way, and do not wait. `features` waits for them."""
        for passed in self._passes(pictures, {}):
            mx.async_eval(passed)

    def _passes(self, pictures: Sequence[Picture], known: dict[bytes, mx.array]) -> Iterator[list[mx.array]]:
        """Adds features to `known`, by digest. Yields the new features of each pass through the model before they are
        evaluated, which is up to the caller, and keeps them after that."""
        missing: dict[bytes, Picture] = {}
        for picture in pictures:
            if picture.digest in self._features:
                self._features.move_to_end(picture.digest)
                known[picture.digest] = self._features[picture.digest]
            else:
                missing[picture.digest] = picture
        at_once = max(1, PATCHES // self._model.config.vision.num_patches)
        digests = list(missing)
        for first in range(0, len(digests), at_once):
            chosen = digests[first : first + at_once]
            encoded = self._model.encode_image(mx.stack([mx.array(missing[digest].pixels) for digest in chosen]))
            rows = [encoded[index] for index in range(len(chosen))]  # copies, so that each can be dropped alone
            yield rows
            for digest, row in zip(chosen, rows, strict=True):
                known[digest] = row
                self._keep(digest, row)

    def _keep(self, digest: bytes, row: mx.array) -> None:
        if row.nbytes > self.limit_bytes:
            return
        self._features[digest] = row
        self.held_bytes += row.nbytes
        while self.held_bytes > self.limit_bytes:
            _, dropped = self._features.popitem(last=False)
            self.held_bytes -= dropped.nbytes
