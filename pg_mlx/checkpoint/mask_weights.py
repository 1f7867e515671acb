"""Where a checkpoint's mask decoder is, and its two file forms: big_vision's vae-oid.npz, and safetensors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import mlx.core as mx

from ..errors import InputError, PgMlxError
from . import hub
from .safetensors import read_header

if TYPE_CHECKING:
    from ..regions.masks import MaskDecoder

FILE_NAME = "mask_decoder.weights"
"""Safetensors, but not called so: mlx-vlm and Swift's MLXVLM read every *.safetensors of a folder as the model's, and
stumble over what the model does not have."""

PUBLISHED_NAME = "vae-oid.npz"
PUBLISHED_SPACE = "big-vision/paligemma"
"""big_vision's demo on the Hugging Face hub."""

MAX_BYTES = 64 << 20
"""Of a file, packed and unpacked; the published one takes about a tenth."""


def find(folder: Path) -> Path | None:
    """The mask decoder of a checkpoint folder, if there is one: ours, or the published file as it is."""
    return next((folder / name for name in (FILE_NAME, PUBLISHED_NAME) if (folder / name).is_file()), None)


def mask_decoder(folder: Path) -> MaskDecoder | HubMaskDecoder:
    """The decoder in a checkpoint's folder, else the published one once it is needed.

    Raises InputError if a file is there but wrong.
    """
    from ..regions.masks import MaskDecoder

    path = find(folder)
    return MaskDecoder.load(path) if path else HubMaskDecoder()


class HubMaskDecoder:
    """The published decoder, fetched when the first mask is to be decoded; the hub's cache keeps it for later runs.

    Where it cannot be had, stderr says so once, and there are boxes without masks: the answer is still worth having.
    """

    def __init__(self) -> None:
        self._decoder: MaskDecoder | None = None
        self._tried = False

    def __call__(self, codes: Any) -> mx.array | None:
        """As MaskDecoder, or None."""
        if not self._tried:
            self._tried = True
            self._decoder = self._fetch()
        return self._decoder(codes) if self._decoder else None

    def _fetch(self) -> MaskDecoder | None:
        from ..regions.masks import MaskDecoder

        try:
            return MaskDecoder.load(hub.space_file(PUBLISHED_SPACE, PUBLISHED_NAME))
        except PgMlxError as error:
            print(f"pg_mlx: boxes without masks: {error}; --mask-decoder FILE gives a decoder", file=sys.stderr)
            return None


def read(path: str | Path) -> dict[str, mx.array]:
    """All arrays of either file form by name. Raises InputError if the file is neither, broken or too large."""
    path = Path(path).expanduser()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
    except OSError as error:
        raise InputError(f"cannot read the mask decoder {path}: {error.strerror}") from None
    if size > MAX_BYTES:
        raise _too_large(path)
    if zipped:
        return _read_npz(path)
    read_header(path)  # which checks it
    try:
        return cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def write(path: Path, weights: dict[str, mx.array]) -> None:
    """Save as safetensors under any name."""
    whole = path.with_name(f"{path.name}.safetensors")  # MLX writes to no other suffix
    mx.save_safetensors(str(whole), weights, {"format": "mlx"})
    whole.replace(path)


def _read_npz(path: Path) -> dict[str, mx.array]:
    import numpy as np  # not where every model is loaded: it costs more than reading a small one

    from .npz import NpzArchive

    archive = NpzArchive(path)
    if sum(member.info.file_size for member in archive.members.values()) > MAX_BYTES:
        raise _too_large(path)
    weights = {}
    for name, member in archive.members.items():
        if member.dtype.kind in "fiu":  # others could only be wrong
            weights[name] = mx.array(np.asarray(archive.read(name)))
    return weights


def _too_large(path: Path) -> InputError:
    return InputError(f"{path} holds more than {MAX_BYTES >> 20} MiB, which no mask decoder does")
