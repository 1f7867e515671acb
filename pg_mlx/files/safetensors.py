"""Headers of safetensors files, checked in bounded memory before MLX maps a byte: files come from strangers.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError
from .json import MAX_JSON_BYTES

Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""The dtype and shape of every tensor in a file."""


ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip

_PIECE_BYTES = 1 << 20


def read_header(path: Path) -> Header:
    """The dtype and shape of every tensor in a file. Raises InputError if the file is not whole."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
            if length is None or length > min(MAX_JSON_BYTES, size - 8):
                raise InputError(f"{path} is not a safetensors file, or it is truncated ({size} bytes)")
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not a safetensors file: its header is not valid JSON") from None
    if not isinstance(header, dict):
        raise InputError(f"{path} is not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    return check_header(path, header, size - 8 - length)


def check_header(path: str | Path, header: Mapping[str, Any], data_bytes: int | None = None) -> Header:
    """A header as it is written in a file, believed only then. data_bytes: what the file holds, where that is known."""
    return {name: _check_entry(path, name, entry, data_bytes) for name, entry in header.items()}


def _check_entry(path: str | Path, name: str, entry: Any, data_bytes: int | None) -> tuple[str, tuple[int, ...]]:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, start, stop]
        sound = all(type(n) is int and n >= 0 for n in numbers)
        sound = sound and stop - start == math.prod(shape) * ITEM_BYTES[dtype]
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError(f"{path}: the entry of {name!r} is malformed or of an unknown dtype")
    if data_bytes is not None and stop > data_bytes:
        raise InputError(f"{path} is truncated: {name!r} ends at byte {stop} of {data_bytes} present")
    return dtype, tuple(shape)


def same_bytes(first: tuple[Path, str], second: tuple[Path, str]) -> bool:
    """Whether two tensors hold the same bytes. Each is given as its file, whose header was read before, and its name.

    They are read piece by piece, and nothing beyond the first difference. Raises InputError.
    """
    try:
        (file, size), (other, other_size) = _open_at(*first), _open_at(*second)
        with file, other:
            if size != other_size:
                return False
            while size > 0:
                piece = file.read(min(size, _PIECE_BYTES))
                if not piece or piece != other.read(len(piece)):
                    return False
                size -= len(piece)
    except OSError as error:
        raise InputError(f"cannot read {first[0]}: {error.strerror}") from None
    return True


def _open_at(path: Path, name: str) -> tuple[BinaryIO, int]:
    """The file, at a tensor's first byte, and the tensor's size in bytes."""
    file = path.open("rb")
    length = struct.unpack("<Q", file.read(8))[0]
    start, stop = json.loads(file.read(length))[name]["data_offsets"]
    file.seek(8 + length + start)
    return file, stop - start
