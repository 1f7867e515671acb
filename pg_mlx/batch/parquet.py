"""Parquet files: pictures or their paths in, rows out. Needs pyarrow, which is not a dependency."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .entries import ID_COLUMNS, IMAGE_COLUMNS, PROMPT_COLUMN, Columns, Entry, Section, column_of, entry_of

_JSON = ("regions", "malformed")
"""Columns that hold JSON text, so that the columns of all files have the same types."""
_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
_READ = 32
"""Rows that are read at a time, pictures included."""


class ParquetListing:
    """The rows of a parquet file. A shard never spans two row groups."""

    def __init__(self, path: Path, columns: Columns):
        """Raises InputError if there is no pyarrow, no parquet file, or no column with pictures."""
        self.name, self._path, self._columns = str(path), path, columns
        with self._open() as file:
            metadata, schema = file.metadata, file.schema_arrow
            self._groups = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
            self.identity = f"{path.name} {path.stat().st_size} {metadata.num_rows}"
        present = dict.fromkeys(schema.names)
        image = column_of(present, columns.image, IMAGE_COLUMNS)
        id = column_of(present, columns.id, ID_COLUMNS)
        for wanted in (image, columns.id):
            if wanted is not None and wanted not in present:
                raise InputError(f"{path} has no column {wanted}; it has: {', '.join(schema.names)}")
        if image is None:
            raise InputError(f"{path} has no column with pictures (--image-column): {', '.join(schema.names)}")
        self.integer_ids = id is None or str(schema.field(id).type) in _INTEGERS
        self._names = [
            name for name in dict.fromkeys((image, id, PROMPT_COLUMN, "path", "file_name")) if name in present
        ]

    def sections(self, size: int) -> list[Section]:
        """Sections that start at the number of a row."""
        found, first = [], 0
        for count in self._groups:
            found += [Section(first + start, min(size, count - start)) for start in range(0, count, size)]
            first += count
        return found

    def entries(self, section: Section) -> Iterator[Entry]:
        """The id is the row's, or else its number."""
        group, first = 0, 0
        while first + self._groups[group] <= section.start:
            first += self._groups[group]
            group += 1
        with self._open() as file:
            end, number = section.start + section.count, first
            for batch in file.iter_batches(_READ, row_groups=[group], columns=self._names):
                wanted = range(max(number, section.start), min(number + batch.num_rows, end))
                if wanted:
                    for place, row in zip(
                        wanted, batch.slice(wanted[0] - number, len(wanted)).to_pylist(), strict=True
                    ):
                        yield entry_of(row, self._columns, self._path.parent, f"{self._path.name}#{place}", place)
                number += batch.num_rows
                if number >= end:
                    return

    def _open(self) -> Any:
        parquet = _pyarrow("parquet")
        try:
            return parquet.ParquetFile(self._path, pre_buffer=False)
        except Exception as error:  # pyarrow's own kinds
            raise InputError(f"cannot read {self._path}: {' '.join(str(error).split())}") from None


def write_rows(path: Path, rows: Sequence[dict[str, Any]], integer_ids: bool) -> None:
    """Write rows of answers as one parquet file. integer_ids: ids are numbers; else they are stored as text."""
    parquet, schema = _pyarrow("parquet"), _schema(integer_ids)
    columns = {
        name: [_stored(name, row[name], integer_ids) for row in rows] for name in (field.name for field in schema)
    }
    parquet.write_table(_pyarrow().table(columns, schema=schema), path)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that write_rows has written, as they were, except that ids may have become text."""
    with _pyarrow("parquet").ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                yield {name: json.loads(value) if name in _JSON else value for name, value in row.items()}


def count_errors(path: Path) -> int:
    """How many of its rows have an error."""
    column = _pyarrow("parquet").read_table(path, columns=["error"]).column("error")
    return len(column) - column.null_count


def join(paths: Iterator[Path], target: Path, integer_ids: bool) -> None:
    """One file with the rows of many, a row group for each."""
    parquet = _pyarrow("parquet")
    with parquet.ParquetWriter(target, _schema(integer_ids)) as writer:
        for path in paths:
            writer.write_table(parquet.read_table(path))


def _stored(name: str, value: Any, integer_ids: bool) -> Any:
    if name in _JSON:
        return json.dumps(value)
    if name == "id" and not integer_ids:
        value = str(value)
    # The names of files need not be Unicode; parquet's text is.
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _schema(integer_ids: bool) -> Any:
    arrow = _pyarrow()
    text = arrow.string()
    return arrow.schema(
        {
            "id": arrow.int64() if integer_ids else text,
            **{"image": text, "prompt": text, "width": arrow.int32(), "height": arrow.int32(), "text": text},
            **{"regions": text, "malformed": text, "finish_reason": text},
            **{"token_ids": arrow.list_(arrow.int32()), "error": text},
        }
    )


def _pyarrow(module: str = "") -> Any:
    """pyarrow, or one of its modules. Raises InputError if it is not installed."""
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{module}" if module else "pyarrow")
    except ImportError:
        raise InputError("parquet files need pyarrow: pip install 'pg_mlx[parquet]'") from None
