"""Small files of named arrays in either of two forms, .npz and safetensors: read whole, bounded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import cast

import mlx.core as mx

from ..errors import InputError
from .safetensors import read_header

MAX_BYTES = 64 << 20
"""Limit for the size of such a file, as it is and unpacked. The published mask decoder takes about a tenth."""


def read_arrays(path: str | Path) -> dict[str, mx.array]:
    """All arrays of either file form by name. Raises InputError if the file is neither, broken or too large."""
    path = Path(path).expanduser()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if size > MAX_BYTES:
        raise _too_large(path)
    if zipped:
        return _read_npz(path)
    read_header(path)  # which checks it
    try:
        arrays = cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
        mx.eval(arrays)
        return arrays
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def write_arrays(path: Path, weights: dict[str, mx.array]) -> None:
    """Save as safetensors under any name. Raises OSError."""
    whole = io.BytesIO()  # MLX's own writer says nothing of a full disk, and knows one suffix only
    mx.save_safetensors(whole, weights, {"format": "mlx"})
    path.write_bytes(whole.getbuffer())


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
