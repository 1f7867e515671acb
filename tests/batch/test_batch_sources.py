"""Every kind of source gives its entries in any cut, and keeps their ids."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx.batch.entries import Columns, Entry, Listing
from pg_mlx.batch.sources import LinesListing, open_listings
from pg_mlx.errors import InputError

PLAIN = Columns()


def everything(listing: Listing, size: int) -> list[Entry]:
    sections = listing.sections(size)
    assert all(0 < section.count <= size for section in sections)
    return [entry for section in sections for entry in listing.entries(section)]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def one(path: Path, columns: Columns = PLAIN) -> Listing:
    (listing,) = open_listings([str(path)], columns)
    return listing


# --- folders and lists ---------------------------------------------------------------------------------


def test_a_folder(pictures: Path) -> None:
    entries = everything(one(pictures), 4)
    assert [entry.id for entry in entries] == [f"{number:02}.png" for number in range(11)]
    assert [entry.image for entry in entries] == [str(pictures / f"{number:02}.png") for number in range(11)]


def test_a_list_of_paths(tmp_path: Path) -> None:
    lines = "\ufeffa.png\r\n\n  sub/b c.png  \nhttps://example.com/c.png\n/d.png\n~/e.png"
    (tmp_path / "list.txt").write_bytes(lines.encode())
    entries = everything(one(tmp_path / "list.txt"), 2)
    assert [entry.id for entry in entries] == [
        *("a.png", "sub/b c.png", "https://example.com/c.png", "/d.png", "~/e.png"),
    ]
    assert [entry.data for entry in entries] == [
        *(f"{tmp_path}/a.png", f"{tmp_path}/sub/b c.png", "https://example.com/c.png", "/d.png", "~/e.png"),
    ]


def test_json_lines(tmp_path: Path) -> None:
    objects = [
        {"id": 7, "image": "a.png", "prompt": "ocr"},
        {"id": "x", "file_name": "b.png"},
        {"image": "c.png"},
        {"id": True, "image": "data:image/png;base64,AAAA"},
        {"id": 9},
        {"id": 10, "image": "d.png", "prompt": 3},
    ]
    text = "\n".join(map(json.dumps, objects)) + "\nnot json\n[1]\n"
    (tmp_path / "list.jsonl").write_text(text)
    entries = everything(one(tmp_path / "list.jsonl"), 3)
    assert [entry.id for entry in entries[:3]] == [7, "x", "c.png"]
    assert [entry.prompt for entry in entries[:3]] == ["ocr", None, None]
    place = f"list.jsonl at byte {len(chr(10).join(map(json.dumps, objects[:3]))) + 1}"
    assert entries[3].data.startswith("data:") and entries[3].image == entries[3].id == place
    assert [bool(entry.error) for entry in entries] == [False] * 4 + [True] * 4
    named = everything(one(tmp_path / "list.jsonl", Columns("file_name", "image")), 9)
    assert named[1].data == f"{tmp_path}/b.png" and named[0].error


def test_a_long_list_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"".join(b"folder/picture-%07d.png\n" % number for number in range(30_000)))
    tracemalloc.start()
    listing = one(path)
    sections = listing.sections(1000)
    last = list(listing.entries(sections[-1]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(sections) == 30 and last[-1].id == "folder/picture-0029999.png"
    assert peak < 1 << 20


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pg_mlx.batch.sources._MAX_LINE", 100)
    (tmp_path / "list.txt").write_bytes(b"a.png\n" + b"x" * 200)
    with pytest.raises(InputError, match="a line of more than"):
        LinesListing(tmp_path / "list.txt", None)


@settings(max_examples=30, deadline=None)
@given(
    lines=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12), max_size=30),
    size=st.integers(1, 12),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_any_list_in_any_cut(tmp_path_factory: pytest.TempPathFactory, lines: list[str], size: int, end: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(end.join(lines).encode())
    expected = [stripped for line in lines if (stripped := line.strip(" \t"))]
    if lines and lines[0].startswith("\ufeff"):
        return
    assert [entry.id for entry in everything(LinesListing(path, None), size)] == expected


# --- tars ----------------------------------------------------------------------------------------------


def test_a_tar_of_webdataset(tmp_path: Path) -> None:
    long = "a-folder-with-a-long-name/" * 6 + "0003.left.png"  # needs a header of its own
    members = {
        "0001.json": b"{}",
        "0001.jpg": b"one",
        "sub/0002.PNG": b"two",
        "._0002.png": b"what macOS adds",
        long: b"three",
        "0004.txt": b"no picture",
    }
    listing = one(write_tar(tmp_path / "data.tar", members))
    for size in (1, 2, 5):
        entries = everything(listing, size)
        assert [entry.id for entry in entries] == ["0001", "sub/0002", long.removesuffix(".left.png")]
        assert [entry.data for entry in entries] == [b"one", b"two", b"three"]
        assert entries[1].image == f"{tmp_path}/data.tar/sub/0002.PNG"


def test_a_tar_is_never_in_memory(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "data.tar", {f"{number:04}.png": bytes(1 << 20) for number in range(30)})
    tracemalloc.start()
    count = 0
    for entry in one(path).entries(one(path).sections(30)[0]):
        count += len(entry.data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 30 << 20 and peak < 4 << 20


def test_a_tar_that_is_cut_or_none(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "data.tar", {f"{number}.png": bytes(3000) for number in range(5)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:9000])
    (tmp_path / "none.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    for name in ("cut.tar", "none.tar"):
        with pytest.raises(InputError, match="not a whole tar"):
            one(tmp_path / name).sections(10)


# --- which is which ------------------------------------------------------------------------------------


def test_a_folder_of_tars(tmp_path: Path) -> None:
    for name in "ba":
        write_tar(tmp_path / f"{name}.tar", {f"{name}.png": b"x"})
    assert [listing.name for listing in open_listings([str(tmp_path)], PLAIN)] == [
        *(f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"),
    ]
    (tmp_path / "list.txt").write_text("a.png")
    with pytest.raises(InputError, match="several kinds"):
        open_listings([str(tmp_path)], PLAIN)
    (tmp_path / "list.txt").unlink()
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(InputError, match="both pictures"):
        open_listings([str(tmp_path)], PLAIN)


def test_what_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "data.tar.gz").write_bytes(b"")
    for name, words in {"none": "cannot read", "data.tar.gz": "not compressed", "": "no pictures"}.items():
        with pytest.raises(InputError, match=words):
            open_listings([str(tmp_path / name)], PLAIN)


def test_the_identity_is_that_of_the_content(pictures: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    for folder in (same, other):
        folder.mkdir()
        for path in pictures.glob("*.png"):
            (folder / path.name).write_bytes(path.read_bytes())
    (other / "99.png").write_bytes(b"")
    assert one(same).identity == one(pictures).identity != one(other).identity
