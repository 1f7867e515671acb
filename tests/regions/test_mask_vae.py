"""Mask codes to masks and back, pasted into pictures, from every file form and from none that is wrong."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.models import distance, one_line_error
from helpers.paths import GOLDEN

import pg_mlx
from pg_mlx import MaskDecoder, MaskEncoder
from pg_mlx.checkpoint import hub, mask_decoder
from pg_mlx.errors import PgMlxError
from pg_mlx.files.arrays import read_arrays, write_arrays
from pg_mlx.regions import Region
from pg_mlx.regions.paste import crop

SEG = GOLDEN / "seg"
ARCHIVE = SEG / "vae_tiny.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, mx.array]:
    tensors = mx.load(str(SEG / "golden.safetensors"))
    assert isinstance(tensors, dict)
    return tensors


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    with np.load(ARCHIVE) as archive:
        return {name: archive[name] for name in archive.files}


def region(golden: dict[str, mx.array]) -> Region:
    height, width = golden["image_hw"].tolist()
    y0, x0, y1, x1 = golden["loc"].tolist()
    return Region("", (y0, x0, y1, x1), (width, height), decoded=np.array(golden["mask64"][0]))


# --- against other people's code -----------------------------------------------------------------------


def test_the_decoder_makes_the_golden_masks(golden: dict[str, mx.array]):
    masks = pg_mlx.MaskDecoder.load(ARCHIVE)(golden["seg_indices"])
    worst = distance(masks, golden["mask64"])
    print(f"mask decoder: {worst:.1e} from the golden masks")
    assert masks.dtype == mx.float32 and worst <= 1e-4


def test_the_encoder_finds_the_golden_codes(golden: dict[str, mx.array]):
    codes = MaskEncoder.load(ARCHIVE)(golden["mask64"] > 0)
    assert mx.array_equal(codes, golden["reencoded_indices"])


def test_pasting_makes_the_golden_mask_in_the_golden_box(golden: dict[str, mx.array]):
    pasted = region(golden)
    x0, y0, x1, y1 = pasted.box_pixels
    assert [y0, x0, y1, x1] == golden["box_pixels_y0x0y1x1"].tolist()
    assert pasted.mask is not None and pasted.mask.dtype == bool
    assert np.array_equal(pasted.mask, np.array(golden["pasted_mask"]).astype(bool))


# --- laws ---------------------------------------------------------------------------------------------


def test_a_row_does_not_depend_on_its_neighbours():
    decode = MaskDecoder.load(ARCHIVE)
    codes = np.random.default_rng(0).integers(0, 128, (9, 16))
    together = decode(codes)
    assert max(distance(decode(codes[i : i + 1])[0], together[i]) for i in range(9)) < 1e-5
    assert decode(np.zeros((0, 16), np.int32)).shape == (0, 64, 64)
    assert MaskEncoder.load(ARCHIVE)(np.zeros((0, 64, 64))).shape == (0, 16)


def test_more_masks_than_one_pass_takes():
    decode = MaskDecoder.load(ARCHIVE)
    codes = np.random.default_rng(1).integers(0, 128, (70, 16))
    masks = decode(codes)
    assert masks.shape == (70, 64, 64) and distance(masks[69], decode(codes[69:])[0]) < 1e-5


def test_widths_are_read_from_the_file(weights: dict[str, np.ndarray]):
    """A decoder of half the residual width, cut out of the other, decodes too."""
    cut = {
        name: array[tuple(slice(0, 8 if size == 16 else size) for size in array.shape)]
        for name, array in weights.items()
    }
    assert MaskDecoder({name: mx.array(array) for name, array in cut.items()})([[5] * 16]).shape == (1, 64, 64)


def test_a_soft_mask_is_where_the_mask_is_and_keeps_its_shades(golden: dict[str, mx.array]):
    pasted = region(golden)
    soft, hard = pasted.soft_mask, pasted.mask
    assert soft is not None and hard is not None and soft.dtype == np.float32
    assert np.array_equal(soft > 0.5, hard) and soft.min() >= 0 and soft.max() <= 1
    assert len(np.unique(soft)) > 300  # more than 8 bits have


def test_a_box_of_less_than_a_pixel_has_an_empty_mask():
    tiny = Region("", (10, 10, 20, 20), (8, 6), decoded=np.ones((64, 64), np.float32))
    assert tiny.mask is not None and tiny.mask.shape == (6, 8) and not tiny.mask.any()
    assert tiny.soft_mask is not None and not tiny.soft_mask.any()
    assert not crop(np.ones((6, 8)), tiny.box_pixels).any()


def test_a_mask_at_the_edges_fills_the_picture():
    whole = Region("", (0, 0, 1023, 1023), (31, 17), decoded=np.ones((64, 64), np.float32))
    assert whole.mask is not None and whole.mask.all() and whole.mask.shape == (17, 31)


def test_cropping_undoes_pasting():
    decoded = np.where(np.hypot(*np.mgrid[-1:1:64j, -1:1:64j]) < 0.8, 1, -1).astype(np.float32)
    pasted = Region("", (100, 200, 900, 1000), (640, 480), decoded=decoded)
    assert pasted.mask is not None
    back = crop(pasted.mask, pasted.box_pixels)
    assert np.mean((back > 0.5) == (decoded > 0)) > 0.99


# --- files --------------------------------------------------------------------------------------------


def test_safetensors_decode_as_the_archive_does_and_keep_the_encoder(tmp_path: Path, golden: dict[str, mx.array]):
    path = tmp_path / mask_decoder.FILE_NAME
    write_arrays(path, read_arrays(ARCHIVE))
    assert [left.name for left in tmp_path.iterdir()] == [path.name]
    assert mx.array_equal(
        MaskDecoder.load(path)(golden["seg_indices"]), MaskDecoder.load(ARCHIVE)(golden["seg_indices"])
    )
    assert mx.array_equal(MaskEncoder.load(path)(golden["mask64"] > 0), golden["reencoded_indices"])


def saved(path: Path, arrays: dict[str, Any], **options: Any) -> Path:
    np.savez(path, **arrays, **options)
    return path


def test_a_file_without_the_encoder_decodes_and_does_not_encode(tmp_path: Path, weights: dict[str, np.ndarray]):
    half = {name: array for name, array in weights.items() if not name.startswith("encoder")}
    path = saved(tmp_path / "half.npz", half | {"_vq_vae._ema_w": np.zeros(3), "step": np.array(7)})
    MaskDecoder.load(path)
    with one_line_error("half.npz", "encoder.0.weight"):
        MaskEncoder.load(path)


def test_half_precision_weights_decode_in_float32(weights: dict[str, np.ndarray], golden: dict[str, mx.array]):
    half = MaskDecoder({name: mx.array(array).astype(mx.bfloat16) for name, array in weights.items()})
    masks = half(golden["seg_indices"])
    assert masks.dtype == mx.float32 and distance(masks, golden["mask64"]) < 0.1


WRONG = {
    "a missing array": lambda w: w.pop("decoder.8.bias"),
    "no codebook": lambda w: w.pop("_vq_vae._embedding"),
    "a codebook of 64": lambda w: w.update({"_vq_vae._embedding": w["_vq_vae._embedding"][:64]}),
    "a wrong kernel": lambda w: w.update({"decoder.2.net.0.weight": np.zeros((16, 16, 5, 5), np.float32)}),
    "a scalar": lambda w: w.update({"decoder.4.weight": np.float32(1)}),
    "whole numbers": lambda w: w.update({"decoder.12.bias": np.zeros(1, np.int32)}),
    "objects": lambda w: w.update({"decoder.12.bias": np.array([{}], object)}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_archives_are_one_line(tmp_path: Path, weights: dict[str, np.ndarray], kind: str):
    WRONG[kind](weights)
    with one_line_error("wrong.npz"):
        MaskDecoder.load(saved(tmp_path / "wrong.npz", weights, allow_pickle=True))


BYTES = {
    "nothing": b"",
    "text": b"PLEASE",
    "half a zip": ARCHIVE.read_bytes()[:3000],
    "a header of 2^60 bytes": (1 << 60).to_bytes(8, "little") + b"{}",
    "a pickle": b"\x80\x04}\x94.",
}


@pytest.mark.parametrize("kind", BYTES)
def test_other_bytes_are_one_line(tmp_path: Path, kind: str):
    (tmp_path / "file").write_bytes(BYTES[kind])
    with one_line_error("file"):
        MaskDecoder.load(tmp_path / "file")


def test_missing_files_and_folders_are_one_line(tmp_path: Path):
    for path in (tmp_path / "none", tmp_path):
        with one_line_error(path.name):
            MaskDecoder.load(path)


def test_an_archive_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.zeros((8 << 20, 4), np.float32))  # 128 MiB of zeros pack to nothing
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("decoder.0.weight.npy", file.getvalue())
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 20
    with one_line_error("bomb.npz", "64 MiB"):
        MaskDecoder.load(tmp_path / "bomb.npz")


@pytest.mark.parametrize("codes", [[[0] * 15], [0] * 16, [[0] * 15 + [128]], [[-1] * 16], [[0.5] * 16], [[[0] * 16]]])
def test_wrong_codes_are_one_line(codes: list):
    with one_line_error("codes"):
        MaskDecoder.load(ARCHIVE)(codes)


@pytest.mark.parametrize("shape", [(64, 64), (1, 63, 64), (1, 64, 64, 1)])
def test_wrong_masks_are_one_line(shape: tuple[int, ...]):
    with one_line_error("masks"):
        MaskEncoder.load(ARCHIVE)(np.zeros(shape))


# --- where the decoder comes from -----------------------------------------------------------------------


def test_the_folders_own_decoder_goes_before_the_published_file_and_that_before_the_hub(tmp_path: Path, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(hub, "space_file", lambda space, name: asked.append(name) or ARCHIVE)
    found = mask_decoder.open_mask_decoder(mask_decoder.find_mask_decoder(tmp_path))
    assert not asked  # only when a mask is to be decoded
    assert found([[1] * 16]) is not None and found([[2] * 16]) is not None
    assert asked == ["vae-oid.npz"]

    (tmp_path / "vae-oid.npz").write_bytes(ARCHIVE.read_bytes())
    assert mask_decoder.find_mask_decoder(tmp_path) == tmp_path / "vae-oid.npz"
    write_arrays(tmp_path / mask_decoder.FILE_NAME, read_arrays(ARCHIVE))
    assert mask_decoder.find_mask_decoder(tmp_path) == tmp_path / mask_decoder.FILE_NAME
    assert isinstance(mask_decoder.open_mask_decoder(tmp_path / mask_decoder.FILE_NAME), MaskDecoder)


def test_without_a_hub_there_are_no_masks_and_one_line_says_so(monkeypatch, capsys, tmp_path: Path):
    def away(space: str, name: str) -> Path:
        raise PgMlxError(f"{name} could not be fetched")

    monkeypatch.setattr(hub, "space_file", away)
    found = mask_decoder.open_mask_decoder(mask_decoder.find_mask_decoder(tmp_path))
    assert found([[1] * 16]) is None and found([[1] * 16]) is None
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "vae-oid.npz" in lines[0] and "--mask-decoder" in lines[0]


@pytest.mark.parametrize("away", [True, False])
def test_the_space_is_asked_once_the_cache_does_not_know(monkeypatch, away: bool):
    """Where the hub is away it is asked for the Space only, since a download would be tried for half a minute."""
    import huggingface_hub

    calls: list[object] = []

    def download(space: str, name: str, repo_type: str, local_files_only: bool = False) -> str:
        calls.append((space, name, repo_type, local_files_only))
        if local_files_only:
            raise OSError("not in the cache")
        return "/cache/vae-oid.npz"

    def info(self, space: str) -> None:
        calls.append(space)
        if away:
            raise OSError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "space_info", info)
    space, file = "big-vision/paligemma", ("big-vision/paligemma", "vae-oid.npz", "space")
    if away:
        with pytest.raises(PgMlxError) as caught:
            hub.space_file(mask_decoder.PUBLISHED_SPACE, mask_decoder.PUBLISHED_NAME)
        assert "\n" not in str(caught.value) and calls == [(*file, True), space]
    else:
        found = hub.space_file(mask_decoder.PUBLISHED_SPACE, mask_decoder.PUBLISHED_NAME)
        assert found == Path("/cache/vae-oid.npz") and calls == [(*file, True), space, (*file, False)]
