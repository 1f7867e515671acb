"""`convert --in-place`: the source is replaced by the result, if a conversion wrote it, and stays whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.checkpoints import PARTS_OF_A_FOLDER, names
from helpers.commands import tiny_checkpoint
from helpers.models import one_line_error

import pg_mlx
from pg_mlx.cli import main
from pg_mlx.errors import InputError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def place(tiny: Path, tmp_path: Path) -> Path:
    """What a conversion wrote."""
    pg_mlx.convert(tiny, tmp_path / "place", check=False)
    return tmp_path / "place"


def bits(folder: Path) -> int | None:
    return json.loads((folder / "config.json").read_text()).get("quantization", {}).get("bits")


def test_the_source_becomes_the_result(place: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("place")
    pg_mlx.convert(place, place, q_bits=8, in_place=True, check=True)
    assert bits(place) == 8 and (place / "quality.json").exists()
    pg_mlx.convert(tmp_path / "link", place, dequantize=True, in_place=True, check=False)
    assert bits(place) is None and names(place) == PARTS_OF_A_FOLDER
    assert main(["convert", "--hf-path", str(tmp_path / "link"), "--q-bits=4", "--in-place", "--no-check"]) == 0
    assert bits(place) == 4 and names(tmp_path) == ["link", "place"] and (tmp_path / "link").is_symlink()
    assert pg_mlx.load(place)


def test_what_no_conversion_wrote_stays(tiny: Path, place: Path, tmp_path: Path) -> None:
    (place / "mine.txt").write_text("mine")
    for folder in (tiny, place):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with pytest.raises(InputError, match="so it is not replaced"):
            pg_mlx.convert(folder, folder, q_bits=8, in_place=True, check=False)
        assert main(["convert", "--hf-path", str(folder), "-q", "--in-place", "--no-check"]) == 2
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_it_needs_its_own_word(tiny: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with one_line_error("which is to be converted", "or --in-place"):
        pg_mlx.convert(place, place, q_bits=8, force=True, check=False)
    with one_line_error("is another folder"):
        pg_mlx.convert(tiny, place, q_bits=8, in_place=True, check=False)
    with one_line_error("which is to be converted"):  # a file in it is read as well
        pg_mlx.convert(place, place, tokenizer=place / "tokenizer.model", in_place=True, check=False)
    for source in ("owner/name", str(place / "config.json"), str(tmp_path / "nothere")):
        assert main(["convert", "--hf-path", source, "--in-place", "-q"]) == 2
        assert "--in-place replaces a folder" in capsys.readouterr().err


def test_a_failure_leaves_the_source(place: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in place.iterdir()}

    def fail(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pg_mlx.convert(place, place, q_bits=8, in_place=True, check=False, progress=fail)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before and names(tmp_path) == ["place"]
