"""Where a checkpoint's mask decoder is, and its two file forms: big_vision's vae-oid.npz, and safetensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..errors import PgMlxError
from . import hub

if TYPE_CHECKING:
    from ..regions.mask_vae import MaskDecoder

FILE_NAME = "mask_decoder.weights"
"""Safetensors, but not called so: mlx-vlm and Swift's MLXVLM read every *.safetensors of a folder as the model's, and
stumble over what the model does not have."""

PUBLISHED_NAME = "vae-oid.npz"
PUBLISHED_SPACE = "big-vision/paligemma"
"""big_vision's demo on the Hugging Face hub."""


def find_mask_decoder(folder: Path) -> Path | None:
    """The mask decoder of a checkpoint folder, if there is one: ours, or the published file as it is."""
    return next((folder / name for name in (FILE_NAME, PUBLISHED_NAME) if (folder / name).is_file()), None)


def open_mask_decoder(path: Path | None) -> MaskDecoder | HubMaskDecoder:
    """The decoder in a checkpoint's file, or without one the published decoder once it is needed.

    Raises InputError if the file is wrong.
    """
    from ..regions.mask_vae import MaskDecoder

    return MaskDecoder.load(path) if path else HubMaskDecoder()


class HubMaskDecoder:
    """The published decoder, fetched when the first mask is to be decoded; the hub's cache keeps it for later runs.

    If it cannot be fetched, stderr says so once, and answers have boxes without masks.
    """

    def __init__(self) -> None:
        self._decoder: MaskDecoder | None = None
        self._tried = False

    def __call__(self, codes: Any) -> mx.array | None:
        """<seg> codes int [B, 16] -> float32 [B, 64, 64] as MaskDecoder gives, or None if it cannot be fetched."""
        if not self._tried:
            self._tried = True
            self._decoder = self._fetch()
        return self._decoder(codes) if self._decoder else None

    def _fetch(self) -> MaskDecoder | None:
        from ..regions.mask_vae import MaskDecoder

        try:
            return MaskDecoder.load(hub.space_file(PUBLISHED_SPACE, PUBLISHED_NAME))
        except PgMlxError as error:
            print(f"pg_mlx: boxes without masks: {error}; --mask-decoder FILE gives a decoder", file=sys.stderr)
            return None
