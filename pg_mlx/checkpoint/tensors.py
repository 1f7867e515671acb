"""Where tensors come from: `Source`, and a folder of safetensors files as one, read lazily under canonical names."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, cast

import mlx.core as mx
import numpy as np

from ..errors import InputError, PgMlxError
from ..files.json import read_json
from ..files.safetensors import ITEM_BYTES, Header, read_header, read_pieces, same_bytes, tensor_starts
from .hub_names import snapshot_of
from .layouts import EMBEDDING, FINAL_NORM, HEAD, canonical_name, has_channels_second, wrapper_prefix
from .other_forms import refuse_unreadable
from .weight_files import INDEX, choose_weight_files

_READ_AS: dict[str, tuple[Any, mx.Dtype | None]] = {
    "F32": (np.float32, None), "F16": (np.float16, None), "BF16": (np.uint16, mx.bfloat16), "U32": (np.uint32, None),
    "U8": (np.uint8, None),
}  # fmt: skip
"""How NumPy reads the dtypes of matrices, and as what MLX then sees them."""

_FLOAT_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}


def evaluate_read(name: str, arrays: Any) -> None:
    """mx.eval of a tree of arrays that a Source has given: only now MLX reads their files. name: for the message.

    Raises PgMlxError if a file ends too early, which its header did not show: it has become shorter since.
    """
    try:
        mx.eval(arrays)
    except RuntimeError as error:
        if "[read]" not in str(error):  # no file's fault, but memory's or the GPU's
            raise
        raise PgMlxError(f"{name} cannot be read: its file has been changed or cut off meanwhile") from None


class Source(Protocol):
    """The tensors of a checkpoint under canonical names, whatever its files look like."""

    shapes: dict[str, tuple[int, ...]]
    """The shape of every tensor; a quantized matrix has the shapes of its packed parts."""

    def read(self, name: str) -> mx.array:
        """The tensor in its stored dtype, perhaps not yet evaluated. May be called again: the source keeps nothing of
        what it has given, so a second call reads the file a second time."""
        ...

    def read_part(self, name: str, axis: int, part: range) -> mx.array:
        """Some rows (axis 0) or columns (axis 1) of a stored matrix. Where it can, it reads those bytes only."""
        chosen = slice(part.start, part.stop)
        return self.read(name)[chosen] if axis == 0 else self.read(name)[:, chosen]

    def stored_bytes(self, name: str) -> int:
        """The size of a tensor in its file, in bytes; of a Source in front of another one, what that reads for it."""
        ...

    def same(self, name: str, other: str) -> bool | None:
        """Whether two tensors are equal bit by bit; None if they cannot be read."""
        return bool(mx.array_equal(self.read(name), self.read(other)).item())

    def beside(self, module: str, weight: mx.array) -> dict[str, mx.array]:
        """The adapter of a quantized module, to be computed beside it; empty if it has none (see AdaptedSource).
        weight: float32 [outputs, columns], the module's dequantized weight, not yet evaluated."""
        return {}

    def adapter_bytes(self, module: str, itemsize: int) -> tuple[int, int]:
        """What an adapter of a module adds to the model, with values of so many bytes, and what more it takes while the
        module is loaded; in bytes. Known before a tensor is read."""
        return 0, 0


class SafetensorsHeaders(Source):
    """The headers of a checkpoint's files: a Source whose tensors cannot be read.

    name: of the checkpoint, for messages. headers: of each file its name and header. Raises InputError if two files
    hold the same tensor.
    """

    def __init__(self, name: str, headers: Iterable[tuple[str, Header]]):
        self.name = name
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.stored: dict[str, tuple[int, ...]] = {}
        """The shape of every tensor in the files, under the name that it has there, ignored ones included."""
        self.float_dtype = mx.float32
        """The dtype of the final norm, which is never quantized, and so of float tensors in general."""
        self.dtypes: dict[str, str] = {}
        """The dtype of every tensor in the files, as safetensors calls it, under the name that it has there."""
        self._sizes: dict[str, int] = {}
        self._places: dict[str, tuple[str, str]] = {}
        found = list(headers)
        self._prefix = wrapper_prefix(name, (key for _, header in found for key in header))
        for file, header in found:
            for key, (dtype, shape) in header.items():
                self._add(file, key, dtype, shape)
        refuse_unreadable(name, self.dtypes)
        self.num_bytes = sum(self._sizes.values())
        """Bytes of all tensors, or of all files where they are local."""

    def _add(self, file: str, key: str, dtype: str, shape: tuple[int, ...]) -> None:
        self.stored[key], self.dtypes[key] = shape, dtype
        name = canonical_name(key.removeprefix(self._prefix))
        if name is None:
            return
        if name in self.shapes:
            raise InputError(f"{self.name} holds {name} twice: in {self._places[name][0]} and {file}")
        if has_channels_second(name, shape):
            shape = (shape[0], *shape[2:], shape[1])
        self.shapes[name] = shape
        self._sizes[name] = math.prod(shape) * ITEM_BYTES[dtype]
        if name == FINAL_NORM:
            self.float_dtype = _FLOAT_DTYPES.get(dtype, mx.float32)
        self._places[name] = (file, key)

    @property
    def stored_dtypes(self) -> set[str]:
        """The dtypes of the tensors that the model needs, as safetensors calls them."""
        return {self.dtypes[key] for _, key in self._places.values()}

    def stored_name(self, name: str) -> str:
        """The name that a tensor has in its file."""
        return self._places[name][1]

    def take_head_for_embedding(self) -> None:
        """Where head and embedding are one table, and it is stored as the head only, call it the embedding. So
        safetensors' save_model writes it, which keeps one of two names."""
        if any(name.startswith(f"{EMBEDDING}.") for name in self.shapes):
            return
        for head in [name for name in self.shapes if name.startswith(f"{HEAD}.")]:
            name = EMBEDDING + head.removeprefix(HEAD)
            self.shapes[name], self._sizes[name] = self.shapes.pop(head), self._sizes.pop(head)
            self._places[name] = self._places.pop(head)

    def stored_bytes(self, name: str) -> int:
        """The size of a tensor in its file."""
        return self._sizes[name]

    def same(self, name: str, other: str) -> bool | None:
        """None: there are only headers."""
        return None

    def read(self, name: str) -> mx.array:
        """Raises PgMlxError: there are only headers."""
        raise PgMlxError(f"{name} cannot be read: of {self.name} there are only the headers here")


class SafetensorsFolder(SafetensorsHeaders):
    """The safetensors files of a local folder. Raises InputError if files are missing, broken or overlap."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = _weight_files(folder)
        super().__init__(str(folder), ((path.name, read_header(path)) for path in self.files))
        self.num_bytes = sum(path.stat().st_size for path in self.files)
        self._opened: dict[Path, dict[str, mx.array]] = {}
        self._starts: dict[Path, dict[str, int]] = {}

    def read(self, name: str) -> mx.array:
        """The tensor in its stored dtype, not yet evaluated. Raises InputError if its file has become unreadable."""
        file, key = self._places[name]
        path = self.folder / file
        if key not in self._opened.get(path, ()):  # the first tensor of this file, or one that is read again
            try:
                self._opened[path] = cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
            except RuntimeError as error:
                raise InputError(f"{path} cannot be read: {error}") from None
        tensor = self._opened[path].pop(key)
        if has_channels_second(name, tensor.shape):
            tensor = tensor.transpose(0, 2, 3, 1)
        return tensor

    def read_part(self, name: str, axis: int, part: range) -> mx.array:
        """As Source.read_part; no other bytes are read."""
        file, key = self._places[name]
        as_read, view = _READ_AS.get(self.dtypes[key], (None, None))
        if as_read is None or len(self.shapes[name]) != 2:
            return super().read_part(name, axis, part)
        path, (rows, columns) = self.folder / file, self.shapes[name]
        if path not in self._starts:
            self._starts[path] = tensor_starts(path)
        start, size = self._starts[path][key], ITEM_BYTES[self.dtypes[key]]
        if axis == 0:
            shape = len(part), columns
            data = read_pieces(path, start + part.start * columns * size, columns * size, len(part), columns * size)
        else:
            shape = rows, len(part)
            data = read_pieces(path, start + part.start * size, columns * size, rows, len(part) * size)
        array = mx.array(np.frombuffer(data, as_read).reshape(shape))
        return array if view is None else array.view(view)

    def same(self, name: str, other: str) -> bool | None:
        """Whether two tensors hold the same bytes and have the same shape. They are compared where they lie."""
        first, second = (self._places[which] for which in (name, other))
        if self.shapes[name] != self.shapes[other] or self._sizes[name] != self._sizes[other]:
            return False
        return same_bytes((self.folder / first[0], first[1]), (self.folder / second[0], second[1]))


def _weight_files(folder: Path) -> list[Path]:
    index, weight_map = folder / INDEX, None
    if index.is_file():
        content = read_json(index)
        weight_map = content.get("weight_map", {}) if isinstance(content, dict) else {}
    paths = list(folder.iterdir())
    names = [path.name for path in paths if path.is_file()]
    gone = [path.name for path in paths if path.suffix == ".safetensors" and path.is_symlink() and not path.exists()]
    if gone:
        raise InputError(f"{folder / gone[0]} is a link to a file that is gone; download it again")
    others = [path.name for path in paths if path.is_dir()]
    repository = snapshot_of(folder)
    place = repository or str(folder)
    files, note = choose_weight_files(place, names, weight_map, others, on_hub=repository is not None)
    if note:
        print(f"pg_mlx: {note}", file=sys.stderr)
    return [folder / name for name in files]
