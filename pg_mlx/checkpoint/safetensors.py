"""A folder of safetensors files as one set of lazily read tensors under canonical names.

Headers come from strangers, so they are checked here, in bounded memory, before MLX maps a byte of them.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from ..errors import InputError, PgMlxError
from .layouts import FINAL_NORM, canonical_name, has_channels_second

Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""The dtype and shape of every tensor in a file."""

MAX_JSON_BYTES = 64 << 20
"""Limit for a header or an index; a 28B model's takes well under one."""

_FLOAT_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip


def read_json(path: Path) -> Any:
    """Parse a JSON file of bounded size. Raises InputError with one line."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB, which no such file is")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None


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
        sound = sound and stop - start == math.prod(shape) * _ITEM_BYTES[dtype]
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError(f"{path}: the entry of {name!r} is malformed or of an unknown dtype")
    if data_bytes is not None and stop > data_bytes:
        raise InputError(f"{path} is truncated: {name!r} ends at byte {stop} of {data_bytes} present")
    return dtype, tuple(shape)


class SafetensorsHeaders:
    """What the headers of a checkpoint's files tell, by canonical name: a Source whose tensors cannot be read.

    Raises InputError if two files hold the same tensor.
    """

    def __init__(self, name: str, headers: Iterable[tuple[str, Header]]):
        self.name = name
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}
        """Bytes of each tensor."""
        self.float_dtype = mx.float32
        """Of the final norm, which is never packed, and so of the floats in general."""
        self._places: dict[str, tuple[str, str]] = {}
        for file, header in headers:
            for key, (dtype, shape) in header.items():
                self._add(file, key, dtype, shape)
        self.num_bytes = sum(self.sizes.values())

    def _add(self, file: str, key: str, dtype: str, shape: tuple[int, ...]) -> None:
        name = canonical_name(key)
        if name is None:
            return
        if name in self.shapes:
            raise InputError(f"{self.name} holds {name} twice: in {self._places[name][0]} and {file}")
        if has_channels_second(name, shape):
            shape = (shape[0], *shape[2:], shape[1])
        self.shapes[name] = shape
        self.sizes[name] = math.prod(shape) * _ITEM_BYTES[dtype]
        if name == FINAL_NORM:
            self.float_dtype = _FLOAT_DTYPES.get(dtype, mx.float32)
        self._places[name] = (file, key)

    def read(self, name: str) -> mx.array:
        raise PgMlxError(f"{name} cannot be read: of {self.name} there are only the headers here")


class SafetensorsFolder(SafetensorsHeaders):
    """`shapes` by canonical name, and `read`. Raises InputError if files are missing, broken or overlap."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = _weight_files(folder)
        super().__init__(str(folder), ((path.name, read_header(path)) for path in self.files))
        self.num_bytes = sum(path.stat().st_size for path in self.files)
        self._opened: dict[Path, dict[str, mx.array]] = {}

    def read(self, name: str) -> mx.array:
        """The tensor, not yet evaluated. Can be read once: nothing of it is kept here."""
        file, key = self._places[name]
        path = self.folder / file
        if path not in self._opened:
            try:
                self._opened[path] = cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
            except RuntimeError as error:
                raise InputError(f"{path} cannot be read: {error}") from None
        tensor = self._opened[path].pop(key)
        if has_channels_second(name, tensor.shape):
            tensor = tensor.transpose(0, 2, 3, 1)
        return tensor


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = read_json(index)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        if any(Path(name).name != name for name in names):
            raise InputError(f"{index} names files outside its folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder} lacks {len(missing)} of {len(names)} weight files: {', '.join(missing[:5])}")
        return [folder / name for name in names]
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("weights*.safetensors"))
    if not files:
        others = [path.name for pattern in ("*.bin", "*.npz", "*.gguf") for path in folder.glob(pattern)]
        hint = f" (it has {others[0]}, which must be converted first)" if others else ""
        raise InputError(f"{folder} has no weights: no model.safetensors and no index{hint}")
    return files
