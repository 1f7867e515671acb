"""Parquet in and out, ids kept. Skipped without pyarrow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.batches import PROMPT, left_over, rows

from pg_mlx.batch.entries import Columns
from pg_mlx.batch.parquet import ParquetListing, read_rows
from pg_mlx.cli import main
from pg_mlx.errors import InputError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path: Path, columns: dict[str, list[Any]], group: int = 100) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
    return path


def batch(*arguments: str | Path) -> int:
    return main(["batch", *map(str, arguments), "--max-tokens", "4"])


def ids_of(path: Path, size: int, columns: Columns = Columns()) -> list[str | int]:  # noqa: B008
    listing = ParquetListing(path, columns)
    return [entry.id for section in listing.sections(size) for entry in listing.entries(section)]


@pytest.mark.parametrize("size", [1, 7, 33, 40, 1000])
@pytest.mark.parametrize("group", [1, 40, 100, 1000])
def test_every_row_once_in_any_cut(tmp_path: Path, size: int, group: int) -> None:
    path = write(tmp_path / "data.parquet", {"path": [f"{n}.png" for n in range(101)], "id": list(range(101))}, group)
    assert ids_of(path, size) == list(range(101))


def test_parquet_in_and_out_keeps_ids(pictures: Path, tmp_path: Path) -> None:
    paths = sorted(pictures.glob("*.png"))
    data = [path.read_bytes() for path in paths]
    source = write(tmp_path / "data.parquet", {"image": data, "id": [n * 10 for n in range(11)], "other": data}, 6)
    assert batch(source, *PROMPT, "--to", tmp_path / "out", "--format", "parquet", "--shard", "4") == 1
    assert batch(pictures, *PROMPT, "--to", tmp_path / "lines") == 1
    files = sorted((tmp_path / "out").glob("*.parquet"))
    found = [row for file in files for row in read_rows(file)]
    assert [row["id"] for row in found] == [n * 10 for n in range(11)]
    assert [row["error"] is not None for row in found] == [n in (3, 8) for n in range(11)]
    same = ("prompt", "width", "height", "text", "regions", "malformed", "finish_reason", "token_ids")
    assert [[row[key] for key in same] for row in found] == [
        [row[key] for key in same] for row in rows(tmp_path / "lines")
    ]
    assert [row["image"] for row in found[:2]] == ["data.parquet#0", "data.parquet#1"]
    assert left_over(tmp_path / "out") == []


def test_status_and_merge(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch(pictures, *PROMPT, "--to", tmp_path / "out", "--format", "parquet", "--shard", "4") == 1
    assert main(["batch", "--status", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "11 of 11 rows, 3 of 3 shards; 2 rows with an error\n"
    assert main(["batch", "--to", str(tmp_path / "out"), "--merge", str(tmp_path / "all.parquet")]) == 0
    merged = parquet.read_table(tmp_path / "all.parquet")
    assert merged.column("id").to_pylist() == [f"{n:02}.png" for n in range(11)]
    assert merged.equals(pyarrow.concat_tables(map(parquet.read_table, sorted((tmp_path / "out").glob("*.parquet")))))


def test_pictures_as_datasets_stores_them(sound: list[Path], tmp_path: Path) -> None:
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in sound[:2]]
    images.append({"bytes": None, "path": str(sound[2])})
    source = write(
        tmp_path / "data.parquet", {"image": images, "key": ["a", "b", None], "prompt": ["ocr", "ocr", None]}
    )
    entries = list(ParquetListing(source, Columns()).entries(ParquetListing(source, Columns()).sections(5)[0]))
    assert [entry.id for entry in entries] == ["a", "b", 2]
    assert [entry.image for entry in entries] == [sound[0].name, sound[1].name, str(sound[2])]
    assert entries[0].data == sound[0].read_bytes() and entries[2].data == str(sound[2])
    assert [entry.prompt for entry in entries] == ["ocr", "ocr", None]


def test_without_ids_rows_are_numbered(tmp_path: Path) -> None:
    source = write(tmp_path / "data.parquet", {"path": ["a.png", "b.png", None]}, 2)
    assert ids_of(source, 2) == [0, 1, 2]


def test_regions_come_back_as_they_were(tmp_path: Path) -> None:
    import pg_mlx

    (tmp_path / "list.txt").write_text(str(Path(pg_mlx.__file__).parent / "demo" / "scene.png"))
    for kind in ("jsonl", "parquet"):
        arguments = ("--prompt", "segment red circle ; blue square", "--to", str(tmp_path / kind), "--format", kind)
        assert main(["batch", str(tmp_path / "list.txt"), *arguments]) == 0
    (row,) = read_rows(tmp_path / "parquet" / "000000.parquet")
    assert row == json.loads((tmp_path / "jsonl" / "000000.jsonl").read_text()) and row["regions"]


def test_names_that_are_no_unicode(sound: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    try:
        (folder / "caf\udce9.png").write_bytes(sound[0].read_bytes())
    except OSError:
        pytest.skip("this disk has Unicode names only")
    assert batch(folder, *PROMPT, "--to", tmp_path / "out", "--format", "parquet") == 0
    (row,) = read_rows(tmp_path / "out" / "000000.parquet")
    assert row["id"] == "caf\\udce9.png"


def test_what_is_wrong(tmp_path: Path) -> None:
    source = write(tmp_path / "data.parquet", {"picture": ["a.png"]})
    for columns, words in (
        (Columns(), "--image-column"),
        (Columns("none"), "no column none"),
        (Columns("picture", "i"), "no column i"),
    ):
        with pytest.raises(InputError, match=words):
            ParquetListing(source, columns)
    assert ids_of(source, 1, Columns("picture")) == [0]
    (tmp_path / "none.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot read"):
        ParquetListing(tmp_path / "none.parquet", Columns())
