"""Whole shards: a file of rows appears under its name when it is complete, and not before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.whole import PARTIAL, write_whole
from . import parquet

FORMATS = ("jsonl", "parquet")

_NO_ERROR = b'"error": null}\n'
"""How the line of an answer ends: `error` is the last key of a row."""


class ShardFiles:
    """The files of a job's rows in its folder, by the number of their shard: 000000.jsonl, 000001.jsonl ...

    Any number of processes may write at the same time, the same shard too: each writes a file of its own, and the last
    one to give it the shard's name wins. A process that is killed leaves at most one hidden file, which is removed as
    soon as its shard is whole.
    """

    def __init__(self, folder: Path, kind: str, integer_ids: bool):
        """kind: one of FORMATS. integer_ids: whether parquet stores ids as numbers."""
        self.folder, self._kind, self._integer_ids = folder, kind, integer_ids

    def path(self, number: int) -> Path:
        """The file of a shard, whether it is there or not."""
        return self.folder / f"{number:06}.{self._kind}"

    def is_whole(self, number: int) -> bool:
        """Whether a shard's file is there."""
        return self.path(number).exists()

    def write(self, number: int, rows: list[dict[str, Any]]) -> None:
        """Write a shard. Raises PgMlxError if that fails, as on a full disk; nothing is left then."""

        def fill(path: Path) -> None:
            if self._kind == "parquet":
                parquet.write_rows(path, rows, self._integer_ids)
            else:
                path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))

        write_whole(self.path(number), fill)
        self.sweep([self.path(number).name])

    def sweep(self, names: Iterable[str]) -> None:
        """Remove what killed processes have left of files that are whole."""
        whole = set(names)
        for left in self.folder.glob(f".*{PARTIAL}"):
            if left.name[1:].rpartition(".")[0].rpartition(".")[0] in whole:
                left.unlink(missing_ok=True)

    def count_errors(self, number: int) -> int:
        """How many rows of a whole shard have an error."""
        if self._kind == "parquet":
            return parquet.count_errors(self.path(number))
        with self.path(number).open("rb") as file:
            return sum(not line.endswith(_NO_ERROR) for line in file)

    def rows(self, number: int) -> Iterator[dict[str, Any]]:
        """The rows of a whole shard."""
        if self._kind == "parquet":
            yield from parquet.read_rows(self.path(number))
            return
        with self.path(number).open("rb") as file:
            yield from map(json.loads, file)

    def join(self, numbers: Iterable[int], target: Path) -> None:
        """Write the rows of whole shards into one new file. Raises InputError if it exists, PgMlxError if it cannot be
        written."""
        paths = map(self.path, numbers)

        def fill(path: Path) -> None:
            if self._kind == "parquet":
                parquet.join(paths, path, self._integer_ids)
                return
            with path.open("wb") as out:
                for shard in paths:
                    out.write(shard.read_bytes())

        if not write_whole(target, fill, replace=False):
            raise InputError(f"{target} exists already; choose another name")
