"""Writing safetensors shards tensor by tensor."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx

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
