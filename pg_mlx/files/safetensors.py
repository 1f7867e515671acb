"""Headers of safetensors files, checked in bounded memory before MLX maps a byte: files come from strangers.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError
from .regular import open_regular

Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""The dtype and shape of every tensor in a file."""

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

MAX_HEADER_BYTES = 8 << 20
"""Some twenty times what the header of a 28B model takes in one file."""

_MAX_RANK = 8
_MAX_DIGITS = 19
_LIMIT = 1 << 63
_PIECE_BYTES = 1 << 20
_READERS = 8
"""Threads that read pieces: a disk answers several small reads at a time."""


def read_header(path: Path) -> Header:
    """The dtype and shape of every tensor in a file. Raises InputError if the file is not whole."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = _header_length(file.read(8))
            if length is None or length > size - 8:
                raise InputError(f"{path} is not a safetensors file, or it is truncated ({size} bytes)")
            if length > MAX_HEADER_BYTES:
                raise InputError(
                    f"{path}: its header has {length} bytes, and no model's has {MAX_HEADER_BYTES >> 20} MiB"
                )
            header = json.loads(file.read(length), parse_int=_integer, object_pairs_hook=_object)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        why = f" ({error})" if isinstance(error, _Unsound) else ""
        raise InputError(f"{path} is not a safetensors file: its header is not valid JSON{why}") from None
    if not isinstance(header, dict):
        raise InputError(f"{path} is not a safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    return check_header(path, header, size - 8 - length)


def data_start(path: Path) -> int | None:
    """Where the tensors begin in a file, in bytes; None if it is too short to be a safetensors file."""
    with open_regular(path) as file:
        length = _header_length(file.read(8))
        size = os.fstat(file.fileno()).st_size
    return None if length is None or 8 + length > size else 8 + length


def check_header(path: str | Path, header: Mapping[str, Any], data_bytes: int | None = None) -> Header:
    """A header as it is written in a file, believed only then: every entry is sound, and the tensors lie one behind the
    other, without holes or overlap. data_bytes: what the file holds, where that is known. Raises InputError."""
    checked = {name: _check_entry(path, name, entry, data_bytes) for name, entry in header.items()}
    end = 0
    for start, stop, name in sorted((*header[name]["data_offsets"], name) for name in checked):
        if start != end:
            what = "overlaps the one before" if start < end else f"leaves {start - end} bytes unused before it"
            raise InputError(f"{path}: {name!r} {what}, so the file is damaged")
        end = stop
    if data_bytes is not None and end != data_bytes:
        raise InputError(f"{path}: {data_bytes - end} bytes behind the last tensor belong to none, so it is damaged")
    return checked


class _Unsound(ValueError):
    """JSON that no header of a safetensors file contains."""


def _header_length(first: bytes) -> int | None:
    return struct.unpack("<Q", first)[0] if len(first) == 8 else None


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _Unsound(f"a number of {len(digits)} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Unsound("a name stands in it twice")
    return found


def _check_entry(path: str | Path, name: str, entry: Any, data_bytes: int | None) -> tuple[str, tuple[int, ...]]:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = isinstance(shape, (list, tuple)) and len(shape) <= _MAX_RANK
        sound = sound and all(type(n) is int and 0 <= n < _LIMIT for n in (*shape, start, stop))
        sound = sound and stop - start == math.prod(shape) * ITEM_BYTES[dtype]
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError(f"{path}: the entry of {name[:200]!r} is malformed or of an unknown dtype")
    if data_bytes is not None and stop > data_bytes:
        raise InputError(f"{path} is truncated: {name[:200]!r} ends at byte {stop} of {data_bytes} present")
    return dtype, tuple(shape)


def tensor_starts(path: Path) -> dict[str, int]:
    """Where each tensor begins in a file whose header was checked (`read_header`), in bytes. Raises InputError."""
    try:
        with open_regular(path) as file:
            length = _header_length(file.read(8)) or 0
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def read_pieces(path: Path, start: int, step: int, count: int, size: int) -> bytearray:
    """`count` pieces of `size` bytes each, one at `start` and each `step` bytes behind the one before. No other byte is
    read, but for what the system reads ahead. Raises InputError if the file ends too early."""
    data = bytearray(count * size)
    whole = memoryview(data)
    if step == size:
        count, size = 1, count * size

    def read(first: int) -> None:
        for index in range(first, min(first + at_once, count)):
            view, offset = whole[index * size : (index + 1) * size], start + index * step
            while view:
                done = os.preadv(file.fileno(), [view], offset)
                if not done:
                    raise InputError(f"{path} has been cut off")
                view, offset = view[done:], offset + done

    at_once = max(1, -(-count // _READERS))
    try:
        with open_regular(path) as file, ThreadPoolExecutor(_READERS) as threads:
            list(threads.map(read, range(0, count, at_once)))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return data


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
