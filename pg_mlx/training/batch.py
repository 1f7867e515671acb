"""What a step of training reads: pictures or their features, prompts and answers, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class TrainingBatch:
    """B rows about I different pictures. Either `pixels` or `features` is given.

    A row's suffix stands right behind its own prefix, so the loss makes positions and mask from the lengths; padding
    has no meaning, only its numbers must be ids. Raises InputError for what does not fit together.
    """

    pixels: mx.array | None
    """float32 [I, H, W, 3] in -1..1."""
    features: mx.array | None
    """[I, N, D], as `encode_image` gives them: those of a frozen tower are computed once for each picture."""
    image_index: list[int]
    """Which picture each row has, B numbers."""
    prefix_ids: np.ndarray
    """int32 [B, P], right-padded with 0: <bos>, text and newline, without placeholders for image tokens."""
    prefix_lengths: np.ndarray
    """int32 [B], at least 1."""
    suffix_ids: np.ndarray
    """int32 [B, S], right-padded with 0: text and <eos>, all of which is learnt."""
    suffix_lengths: np.ndarray
    """int32 [B], at least 1."""

    def __post_init__(self) -> None:
        rows = len(self.image_index)
        if (self.pixels is None) == (self.features is None):
            raise InputError("a batch has either pixels or features")
        images = self.pixels if self.features is None else self.features
        if images is None or not rows or not all(0 <= index < images.shape[0] for index in self.image_index):
            raise InputError(f"image_index is {self.image_index}, which does not name a picture for each row")
        for name in ("prefix", "suffix"):
            ids, lengths = getattr(self, f"{name}_ids"), getattr(self, f"{name}_lengths")
            if ids.ndim != 2 or ids.shape[0] != rows or lengths.shape != (rows,):
                raise InputError(f"{name}_ids {ids.shape} and {name}_lengths {lengths.shape} are not {rows} rows")
            if lengths.min() < 1 or lengths.max() > ids.shape[1]:
                raise InputError(f"{name}_lengths are {lengths.tolist()}, but must be 1 to {ids.shape[1]}")

    @property
    def rows(self) -> int:
        """B."""
        return len(self.image_index)

    @property
    def suffix_tokens(self) -> int:
        """Tokens that are learnt, <eos> included."""
        return int(self.suffix_lengths.sum())

    def select(self, rows: Sequence[int]) -> TrainingBatch:
        """These rows only, in this order, with the pictures that they need."""
        used = sorted({self.image_index[row] for row in rows})
        place, index = {image: number for number, image in enumerate(used)}, mx.array(used)
        chosen = np.array(rows)
        return replace(
            self,
            pixels=None if self.pixels is None else self.pixels[index],
            features=None if self.features is None else self.features[index],
            image_index=[place[self.image_index[row]] for row in rows],
            prefix_ids=self.prefix_ids[chosen],
            prefix_lengths=self.prefix_lengths[chosen],
            suffix_ids=self.suffix_ids[chosen],
            suffix_lengths=self.suffix_lengths[chosen],
        )
