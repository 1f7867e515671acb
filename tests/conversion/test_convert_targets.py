"""`convert` into whatever a target can be: nothing that a conversion did not write is ever gone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.checkpoints import PARTS_OF_A_FOLDER, names
from helpers.commands import tiny_checkpoint
from helpers.targets import convert, copied, everything

import pg_mlx
from pg_mlx.conversion.written import MANIFEST, owned
from pg_mlx.errors import InputError


def edit(name: str) -> Callable[[Path], None]:
    """Change one byte of a file, in its middle, so that its size stays."""

    def change(target: Path) -> None:
        content = bytearray((target / name).read_bytes())
        content[len(content) // 2] ^= 1
        (target / name).write_bytes(content)

    return change


def add(name: str, content: str = "mine") -> Callable[[Path], None]:
    def change(target: Path) -> None:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(content)

    return change


def link(name: str, to: str) -> Callable[[Path], None]:
    return lambda target: (target / name).symlink_to(to)


def without_manifest(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(target: Path) -> None:
        (target / MANIFEST).unlink()
        change(target)

    return both


def other_weights(target: Path) -> None:
    """Weights of the same name, from another program."""
    path = next(target.glob("*.safetensors"))
    mx.save_safetensors(str(path), dict(mx.load(str(path))))


def no_card(target: Path) -> None:
    (target / "README.md").write_text("my own words")


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file": (add("notes.txt"), "notes.txt"),
    "a file before all others by name": (add("!notes"), "!notes"),
    "a dotfile": (add(".env"), ".env"),
    "a repository": (add(".git/config"), f".git{os.sep}"),
    "a subfolder": (add("photos/cat.jpg"), f"photos{os.sep}"),
    "an empty subfolder": (lambda target: (target / "empty").mkdir(), f"empty{os.sep}"),
    "a checkpoint inside": (lambda target: copied(target, target.parent / "x").rename(target / "x"), f"x{os.sep}"),
    "a link to a folder": (link("data", ".."), "data"),
    "a link to a file": (link("more.json", "config.json"), "more.json"),
    "a dangling link": (link("gone", "nowhere"), "gone"),
    "a known name that is a link": (
        lambda target: (target / "quality.json").symlink_to("config.json"),
        "quality.json",
    ),
    "a pipe": (lambda target: os.mkfifo(target / "pipe"), "pipe"),
    "a known name": (add("added_tokens.json", "{}"), "added_tokens.json"),
    "another program's weights": (add("adapter_model.safetensors"), "adapter_model.safetensors"),
    "weights that were trained on": (other_weights, ".safetensors, which has changed"),
    "an edited model card": (edit("README.md"), "README.md, which has changed"),
    "an edited config.json": (edit("config.json"), "config.json, which has changed"),
    "an edited tokenizer": (edit("tokenizer.model"), "tokenizer.model, which has changed"),
    "a shard with one changed bit": (edit("model-00001-of-00001.safetensors"), "which has changed"),
    "an older folder and a file": (without_manifest(add("notes.txt")), "notes.txt"),
    "an older folder and weights": (without_manifest(add("mine.safetensors")), "mine.safetensors"),
    "an older folder with other weights": (without_manifest(other_weights), ".safetensors"),
    "an older folder with another card": (without_manifest(no_card), "README.md"),
    "a manifest that is none": (add(MANIFEST, "[]"), MANIFEST),
}


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_folder_with_anything_foreign_stays(
    kind: str, force: bool, source: Path, earlier: Path, tmp_path: Path
) -> None:
    target = copied(earlier, tmp_path / "out")
    change, words = FOREIGN[kind]
    change(target)
    before = everything(tmp_path)
    with pytest.raises(InputError, match="exists already" if not force else "holds ") as caught:
        convert(source, target, force=force)
    assert "\n" not in str(caught.value) and (not force or words in str(caught.value)), caught.value
    assert everything(tmp_path) == before


def test_a_folder_of_other_things_stays(source: Path, tmp_path: Path) -> None:
    """Somebody's checkpoint, and somebody's home."""
    theirs = tiny_checkpoint(tmp_path / "theirs")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("mine")
    before = everything(tmp_path)
    for target in (theirs, tmp_path / "home", tmp_path):
        with pytest.raises(InputError, match="which no conversion wrote"):
            convert(source, target, force=True)
    assert everything(tmp_path) == before


def test_what_convert_wrote_is_replaced(source: Path, earlier: Path, tmp_path: Path) -> None:
    """Also an empty folder, one that was copied, one of an older version, and behind a link."""
    kinds: dict[str, Callable[[Path], object]] = {
        "copied": lambda target: copied(earlier, target),
        "older": lambda target: (copied(earlier, target) / MANIFEST).unlink(),
        "empty": lambda target: target.mkdir(),
        "incomplete": lambda target: (copied(earlier, target) / "config.json").unlink(),
    }
    for name, make in kinds.items():
        target = tmp_path / name
        make(target)
        convert(source, target, force=True)
        assert names(target) == PARTS_OF_A_FOLDER and owned(target)
        assert json.loads((target / "config.json").read_text())["quantization"]["bits"] == 8
    (tmp_path / "link").symlink_to("copied")
    convert(source, tmp_path / "link", q_bits=4, force=True)
    assert str((tmp_path / "link").readlink()) == "copied"
    assert json.loads((tmp_path / "copied" / "config.json").read_text())["quantization"]["bits"] == 4
    assert names(tmp_path) == sorted([*kinds, "link"])


def test_the_source_is_never_replaced(source: Path, earlier: Path, tmp_path: Path) -> None:
    """Converting in place, through a link, with links to its files, and with an adapter or a tokenizer there."""
    place = copied(earlier, tmp_path / "place")
    (tmp_path / "link").symlink_to(place)
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in place.iterdir():
        (linked / path.name).symlink_to(path)
    before = everything(tmp_path)
    for given, target in ((place, place), (place, tmp_path / "link"), (tmp_path / "link", place), (linked, place)):
        with pytest.raises(InputError, match="which is to be converted"):
            pg_mlx.convert(given, target, dequantize=True, force=True, check=False)
    with pytest.raises(InputError, match="which is to be converted"):
        convert(source, place, tokenizer=place / "tokenizer.model", force=True)
    with pytest.raises(InputError, match="holds pictures"):
        (place / "pictures").mkdir()
        convert(source, place, calibration=place / "pictures", check=True, force=True)
    (place / "pictures").rmdir()
    assert everything(tmp_path) == before


def test_the_working_directory_is_never_replaced(
    source: Path, earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = copied(earlier, tmp_path / "out")
    monkeypatch.chdir(target)
    before = everything(tmp_path)
    for name in (target, Path(), Path(), Path("../out"), Path("../out/../out")):
        with pytest.raises(InputError, match="the working directory"):
            convert(source, name, force=True)
    for name in ("..", "/"):
        with pytest.raises(InputError):
            convert(source, name, force=True)
    assert everything(tmp_path) == before
