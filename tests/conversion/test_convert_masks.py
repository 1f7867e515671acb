"""convert.py and the decoder of masks: put in, carried along, used, and in nobody's way."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest
from helpers.commands import tiny_checkpoint
from helpers.models import one_line_error
from helpers.regions import ARCHIVE

import pg_mlx
from pg_mlx.checkpoint import hub, mask_decoder
from pg_mlx.checkpoint.validate import validate
from pg_mlx.cli import main
from pg_mlx.files.arrays import read_arrays, write_arrays
from pg_mlx.regions.mask_vae import MaskDecoder, MaskEncoder

CODES = [[7] * 16]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def convert(*flags: str | Path) -> int:
    return main(["convert", *map(str, flags), "--no-check"])


def test_the_command_puts_the_decoder_into_the_folder_where_generate_finds_it(source: Path, tmp_path: Path):
    target = tmp_path / "out"
    assert convert("--hf-path", source, "--mlx-path", target, "--mask-decoder", ARCHIVE) == 0
    _, processor = pg_mlx.load(target)
    assert isinstance(processor.mask_decoder, MaskDecoder)
    assert mx.array_equal(processor.mask_decoder(CODES), MaskDecoder.load(ARCHIVE)(CODES))
    MaskEncoder.load(target / mask_decoder.FILE_NAME)  # training wants it


def test_other_programs_do_not_take_it_for_weights(source: Path, tmp_path: Path):
    """mlx-vlm and Swift's MLXVLM load every *.safetensors, and refuse tensors that the model has no place for."""
    plain, masked = tmp_path / "plain", tmp_path / "masked"
    convert("--hf-path", source, "--mlx-path", plain)
    convert("--hf-path", source, "--mlx-path", masked, "--mask-decoder", ARCHIVE)
    names = [sorted(path.name for path in folder.rglob("*.safetensors")) for folder in (plain, masked)]
    assert names[0] == names[1] and validate(plain) == validate(masked)


@pytest.mark.parametrize("name", ["vae-oid.npz", mask_decoder.FILE_NAME])
def test_a_decoder_in_the_source_comes_along_quantized_or_not(source: Path, tmp_path: Path, name: str):
    first, second = tmp_path / "first", tmp_path / "second"
    assert convert("--hf-path", source, "--mlx-path", first) == 0
    if name == "vae-oid.npz":
        (first / name).write_bytes(ARCHIVE.read_bytes())
    else:
        write_arrays(first / name, read_arrays(ARCHIVE))
    assert convert("--hf-path", first, "--mlx-path", second, "-q") == 0
    assert not (second / "vae-oid.npz").exists()
    decode = MaskDecoder.load(second / mask_decoder.FILE_NAME)
    assert mx.array_equal(decode(CODES), MaskDecoder.load(ARCHIVE)(CODES))


def test_what_is_not_needed_stays_behind(source: Path, tmp_path: Path):
    more = tmp_path / "more.npz"
    import numpy as np

    with np.load(ARCHIVE) as archive:
        np.savez(more, **archive, **{"_vq_vae._ema_w": np.zeros((128, 24), np.float32)})
    convert("--hf-path", source, "--mlx-path", tmp_path / "out", "--mask-decoder", more)
    assert "_vq_vae._ema_w" not in read_arrays(tmp_path / "out" / mask_decoder.FILE_NAME)


def test_a_wrong_decoder_is_said_before_anything_is_written(source: Path, tmp_path: Path):
    (tmp_path / "wrong.npz").write_bytes(b"PK nonsense")
    with one_line_error("wrong.npz"):
        pg_mlx.convert(source, tmp_path / "out", mask_decoder=tmp_path / "wrong.npz", check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.npz"]


def test_a_given_decoder_goes_before_the_folders_own(source: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(hub, "space_file", lambda space, name: pytest.fail("asked the hub"))
    _, processor = pg_mlx.load(source, mask_decoder=ARCHIVE)
    assert isinstance(processor.mask_decoder, MaskDecoder)
    with one_line_error("nowhere.npz"):
        pg_mlx.load(source, mask_decoder="nowhere.npz")


def test_the_hub_is_asked_for_no_model_that_finds_no_masks(source: Path, monkeypatch):
    monkeypatch.setattr(hub, "space_file", lambda space, name: pytest.fail("asked the hub"))
    model, processor = pg_mlx.load(source)
    pg_mlx.generate(
        model, processor, "segment cat", ARCHIVE.parent.parent / "images" / "img0_rgb_56x56.png", max_tokens=4
    )
