"""`convert` into whatever a target can be: nothing that a conversion did not write is ever gone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.checkpoints import PARTS_OF_A_FOLDER, names
from helpers.commands import tiny_checkpoint

import pg_mlx
from pg_mlx.conversion.written import MANIFEST, owned
from pg_mlx.errors import InputError, PgMlxError

convert = partial(pg_mlx.convert, q_bits=8, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def earlier(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an earlier conversion wrote, in 4 bits."""
    folder = tmp_path_factory.mktemp("models") / "earlier"
    convert(source, folder, q_bits=4)
    return folder


def everything(folder: Path) -> dict[str, object]:
    """All that lies below a folder: files with their bytes, links with their targets, not followed."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = str(path.readlink())
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
        else:
            found[str(path.relative_to(folder))] = stat.S_IFMT(path.lstat().st_mode)
    return found


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A file system on `folder`."""
    if shutil.which("mount") is None or subprocess.run(["mount", *options, str(folder)], check=False).returncode:
        pytest.skip("may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def copied(earlier: Path, target: Path) -> Path:
    return Path(shutil.copytree(earlier, target, symlinks=True))


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


@pytest.mark.parametrize("force", [False, True], ids=["plain", "force"])
def test_targets_that_are_no_folder(force: bool, source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-file").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("no/such")
    before = everything(tmp_path)
    for name in ("file", "pipe", "to-file", "loop", "nowhere", "no/such", "file/below"):
        with pytest.raises(PgMlxError) as caught:
            convert(source, tmp_path / name, force=force)
        assert "\n" not in str(caught.value)
    assert everything(tmp_path) == before


def test_a_dangling_link_is_followed(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("made")
    convert(source, tmp_path / "link")
    assert str((tmp_path / "link").readlink()) == "made" and names(tmp_path / "made") == PARTS_OF_A_FOLDER


def test_mount_points_stay(source: Path, earlier: Path, tmp_path: Path) -> None:
    """The target itself, a read-only one, one on another disk, and a mount point within."""
    target = tmp_path / "disk"
    target.mkdir()
    with mounted(target, "-t", "tmpfs", "tmpfs"):
        with pytest.raises(InputError, match="mount point"):
            convert(source, target, force=True)
        copied(earlier, target / "out")
        convert(source, target / "out", force=True)  # on another disk, but no disk of its own
        (target / "out" / "inner").mkdir()
        with mounted(target / "out" / "inner", "-t", "tmpfs", "tmpfs"):
            (target / "out" / "inner" / "x").write_text("mine")
            with pytest.raises(InputError, match="holds inner"):
                convert(source, target / "out", force=True)
            assert (target / "out" / "inner" / "x").read_text() == "mine"
        subprocess.run(["mount", "-o", "remount,ro", str(target)], check=True)
        (rest := everything(target)).pop("out/inner")
        with pytest.raises(PgMlxError):
            convert(source, target / "out", force=True)
        assert {name: content for name, content in everything(target).items() if name != "out/inner"} == rest


def test_what_appears_while_it_is_replaced_stays(source: Path, earlier: Path, tmp_path: Path) -> None:
    target = copied(earlier, tmp_path / "out")

    def appear(what: str, done: int, total: int) -> None:
        (target / "late.txt").write_text("mine")

    with pytest.raises(InputError, match="holds late"):
        convert(source, target, force=True, progress=appear)
    assert (target / "late.txt").read_text() == "mine" and names(tmp_path) == ["out"]


def test_folders_with_the_names_of_temporary_ones_stay(source: Path, earlier: Path, tmp_path: Path) -> None:
    """A killed run's are removed, others that only have such a name are not."""
    for state in ("partial", "replaced"):
        (tmp_path / f".out.{state}-999999999").mkdir()
        (tmp_path / f".out.{state}-999999999" / "mine.txt").write_text("mine")
    copied(earlier, tmp_path / ".out.replaced-999999998")
    before = everything(tmp_path)
    copied(earlier, tmp_path / "out")
    convert(source, tmp_path / "out", force=True)
    gone = {name for name in before if name not in everything(tmp_path)}
    assert gone and all(name.startswith(".out.replaced-999999998") for name in gone)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOTTY, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_cannot_sync_folders(
    number: int, source: Path, earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network disk: the conversion is complete all the same. Real faults are errors."""
    target, real = copied(earlier, tmp_path / "out"), os.fsync
    before = everything(target)

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EIO:
        with pytest.raises(PgMlxError, match="Input/output"):
            convert(source, target, force=True)
        assert everything(target) == before
    else:
        convert(source, target, force=True)
        assert owned(target) and everything(target) != before
    assert names(tmp_path) == ["out"]


def test_files_beside_the_target_need_not_be_readable(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs").write_text("x")
    real = os.open

    def opened(path: object, *rest: object, **more: object) -> int:
        if str(path).endswith("theirs"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opened)
    convert(source, tmp_path / "out")
    assert names(tmp_path / "out") == PARTS_OF_A_FOLDER
