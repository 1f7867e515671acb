"""Writing a checkpoint folder: tensor by tensor into shards, and whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import mlx.core as mx

from ..errors import InputError

SHARD_BYTES = 5 << 30
HEADER_BYTES = 1 << 20

_DTYPES = {
    mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.uint8: "U8", mx.int32: "I32",
}  # fmt: skip


class ShardWriter:
    """Appends tensors to model-0000i-of-0000n.safetensors; memory held is the tensor (or chunk) being written.

    `header_bytes` are kept free at the head of each shard: its header is written last, padded with spaces as the
    format allows. Call `close` at the end: it gives the files their names and writes the index.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES, header_bytes: int = HEADER_BYTES):
        self.folder, self.shard_bytes = folder, shard_bytes
        self.header_bytes = -(-header_bytes // 64) * 64  # data begins at a multiple of 64 bytes
        self.total_bytes = 0
        self._shards: list[dict[str, dict]] = []
        self._file: io.FileIO | None = None  # unbuffered: nothing is left to write after a failure

    def add(self, name: str, array: mx.array) -> None:
        """Write one tensor."""
        self.add_chunks(name, array.dtype, array.shape, [array])

    def add_chunks(self, name: str, dtype: mx.Dtype, shape: tuple[int, ...], chunks: Iterable[mx.array]) -> None:
        """Write one tensor that comes in pieces along its first dimension."""
        if self._file is None or self._file.tell() - self.header_bytes >= self.shard_bytes:
            self._next_shard()
        assert self._file is not None
        start = self._file.tell()
        for chunk in chunks:
            _write(self._file, _bytes(chunk.astype(dtype)))
        stop = self._file.tell()
        offsets = [start - self.header_bytes, stop - self.header_bytes]
        self._shards[-1][name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": offsets}
        self.total_bytes += stop - start

    def close(self) -> None:
        """Finish the last shard, name all of them and write model.safetensors.index.json."""
        self._finish_shard()
        weight_map: dict[str, str] = {}
        for number, tensors in enumerate(self._shards):
            name = f"model-{number + 1:05}-of-{len(self._shards):05}.safetensors"
            self._path(number).rename(self.folder / name)
            weight_map |= dict.fromkeys(tensors, name)
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")

    def _path(self, index: int) -> Path:
        return self.folder / f"shard-{index}.partial"

    def _next_shard(self) -> None:
        self._finish_shard()
        self._file = self._path(len(self._shards)).open("wb", buffering=0)
        _write(self._file, memoryview(b" " * self.header_bytes))
        self._shards.append({})

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        header = json.dumps({"__metadata__": {"format": "mlx"}, **self._shards[-1]}).encode()
        room = self.header_bytes - 8
        assert len(header) <= room, "more tensors in a shard than its header has room for"
        self._file.seek(0)
        _write(self._file, memoryview(room.to_bytes(8, "little") + header))
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None


def _write(file: io.FileIO, data: memoryview) -> None:
    while data:  # the system takes two gigabytes at a time
        data = data[file.write(data) :]


def _bytes(array: mx.array) -> memoryview:
    """The array's own memory, row by row, without a copy where it already is contiguous."""
    array = mx.contiguous(array)
    if array.dtype == mx.bfloat16:  # unknown to Python's buffer protocol
        array = array.view(mx.uint16)
    mx.eval(array)
    return memoryview(array).cast("B")  # type: ignore[arg-type]  # mlx's stub does not declare the buffer protocol


@contextlib.contextmanager
def whole_folder(target: Path, force: bool = False) -> Iterator[Path]:
    """A temporary sibling of `target` to write into, which takes its name only if nothing went wrong.

    Raises InputError if the target exists, unless `force`; then the old folder lives until the new one is complete.
    A process that is killed leaves its sibling behind; the next run for the same target removes it.
    """
    if target.is_symlink():
        target = target.resolve()  # the link stays, and the new folder is written where the old one is
    if not target.parent.is_dir():
        raise InputError(f"no such folder: {target.parent}")
    _clean_up(target)
    if target.exists() and not force:
        raise InputError(f"{target} exists already; choose another name, or --force to replace it")
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file; only a folder can be replaced")
    partial, replaced = (target.parent / f".{target.name}.{state}-{os.getpid()}" for state in ("partial", "replaced"))
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        if target.exists():
            if not force:
                raise InputError(f"{target} has appeared meanwhile; choose another name, or --force to replace it")
            target.rename(replaced)
        partial.rename(target)
        _sync(target.parent)
    finally:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        for left in (partial, replaced):
            shutil.rmtree(left, ignore_errors=True)


def _clean_up(target: Path) -> None:
    """Remove what killed processes left; if one died between its two renames, give the old folder its name back."""
    for state in ("replaced", "partial"):
        for left in target.parent.glob(f".{glob.escape(target.name)}.{state}-*"):
            if _is_alive(left.name.rpartition("-")[2]):
                continue
            if state == "replaced" and not target.exists():
                left.rename(target)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    return int(pid) != os.getpid()


def _sync(folder: Path) -> None:
    """Make the folder's entries and files durable before it takes its name."""
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
