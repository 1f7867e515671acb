"""Rarer pixels as other programs show them, and pictures that Python made from others as they are."""

import io
import struct
import warnings
import zlib

import mlx.core as mx
import numpy as np
import pytest
from helpers.hostile_pictures import bitmap, chunk, grey_tiff, icon, png
from helpers.pictures import NOISE, PICTURE, loaded, saved
from PIL import Image, ImageOps

from pg_mlx.processor.images import load_image


def first_row(data: object) -> list[int]:
    return loaded(data)[0, :, 0].tolist()


# --- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bits, rows, key, expected",
    [
        (16, struct.pack(">4H", 0x8000, 0, 0x8001, 0xFFFF), 0x8000, [255, 0, 128, 255]),
        (16, struct.pack(">4H", 0, 1, 257, 514), 0, [255, 0, 1, 2]),
        (8, bytes((0, 100, 200, 255)), 100, [0, 255, 200, 255]),
        (4, b"\x03\x4f", 3, [0, 255, 68, 255]),
        (2, b"\x1b", 1, [0, 255, 170, 255]),
        (1, b"\x50", 0, [255, 255, 255, 255]),
    ],
)
def test_a_transparent_level_of_grey_is_white(bits: int, rows: bytes, key: int, expected: list[int]) -> None:
    data = png(4, 1, b"\0" + rows, bits, 0, chunk(b"tRNS", struct.pack(">H", key)))
    assert first_row(data) == expected


def test_a_transparent_colour_of_sixteen_bits_is_white() -> None:
    rows = struct.pack(">6H", 0x8080, 0, 0, 0x8080, 0x0101, 0)
    data = png(2, 1, b"\0" + rows, 16, 2, chunk(b"tRNS", struct.pack(">3H", 0x8080, 0, 0)))
    assert loaded(data)[0].tolist() == [[255, 255, 255], [128, 1, 0]]
    image = Image.open(io.BytesIO(png(2, 1, b"\0" + b"\x80\0\0\x01", 16, 0, chunk(b"tRNS", b"\x80\0"))))
    assert first_row(image) == [255, 0]


@pytest.mark.parametrize("order", ["<", ">"])
def test_zero_is_white_in_every_depth(order: str) -> None:
    assert first_row(grey_tiff(8, bytes((0, 100, 255)), 3, True, order)) == [255, 155, 0]
    levels = np.array([0, 25700, 65535], order + "u2").tobytes()
    assert first_row(grey_tiff(16, levels, 3, True, order)) == [255, 155, 0]
    assert first_row(grey_tiff(16, levels, 3, False, order)) == [0, 100, 255]
    floats = np.array([0, 0.25, 1], order + "f4").tobytes()
    assert first_row(grey_tiff(32, floats, 3, True, order, kind=3)) == [255, 191, 0]
    assert first_row(grey_tiff(32, floats, 3, False, order, kind=3)) == [0, 64, 255]


def test_twelve_bits_reach_white() -> None:
    assert first_row(grey_tiff(12, bytes.fromhex("000fff800000"), 4)) == [0, 255, 128, 0]


@pytest.mark.parametrize(
    "levels, expected",
    [
        ([0, 200], [0, 200]),
        ([0, 255], [0, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([0, 1 << 30, (1 << 31) - 1], [0, 128, 255]),
        ([-5, 100], [0, 100]),
    ],
)
def test_whole_numbers_of_32_bits_take_the_range_that_holds_them(levels: list[int], expected: list[int]) -> None:
    row = np.array([levels], np.int32)
    assert first_row(Image.fromarray(row)) == expected
    assert first_row(saved(Image.fromarray(row), "TIFF")) == expected


def test_sixteen_bits_of_a_file_are_sixteen_bits_however_dark() -> None:
    dark = Image.fromarray(np.array([[0, 200]], np.uint16))
    for kind in ("PNG", "TIFF", "PPM"):
        assert first_row(saved(dark, kind)) == [0, 1]


def test_palettes_with_alpha_are_laid_over_white() -> None:
    for alpha, level in ((0, 255), (128, 127), (255, 0)):
        image = Image.new("RGBA", (4, 1), (0, 0, 0, alpha)).quantize(4)
        assert image.mode == "P" and first_row(image) == [level] * 4
        assert first_row(saved(image)) == [level] * 4


RED = b"\x00\x00\xff\x00" * 16
MASKS = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + b"\0" * 48


def red_bitmap(pixels: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 108, 4, 4, 1, 32, 3, len(pixels), 2835, 2835, 0, 0) + MASKS
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(pixels), 0, 0, 14 + len(head)) + head + pixels


def test_a_bitmap_whose_alpha_nobody_filled_is_opaque() -> None:
    assert loaded(red_bitmap(RED))[0, 0].tolist() == [255, 0, 0]
    assert loaded(Image.open(io.BytesIO(red_bitmap(RED))))[0, 0].tolist() == [255, 0, 0]
    assert loaded(bitmap(4, 4, 32, 0, RED))[0, 0].tolist() == [255, 0, 0]
    dib = struct.pack("<IiiHHIIiiII", 40, 4, 8, 1, 32, 0, 0, 0, 0, 0, 0)
    assert loaded(icon(dib + RED + b"\0" * 16, 4))[0, 0].tolist() == [255, 0, 0]
    half = RED[:32] + b"\x00\x00\xff\xff" * 8  # one that was filled
    assert loaded(red_bitmap(half))[:, 0].tolist() == [[255, 0, 0]] * 2 + [[255, 255, 255]] * 2


def test_a_png_that_is_transparent_everywhere_is_white() -> None:
    assert (loaded(saved(Image.new("RGBA", (3, 2), (255, 0, 0, 0)))) == 255).all()


# --- what Python made from other pictures ---------------------------------------------------------------


def phone(kind: str = "JPEG") -> bytes:
    """Lying on its side in the file."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(Image.fromarray(NOISE[:40, :24]), kind, exif=exif)


MADE = {
    "rotate": lambda image: image.rotate(270, expand=True),
    "transpose": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "crop": lambda image: image.crop((0, 0, 10, 20)),
    "resize": lambda image: image.resize((30, 20)),
    "convert": lambda image: image.convert("L"),
    "copy": lambda image: image.copy(),
    "exif_transpose": ImageOps.exif_transpose,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("made", MADE)
def test_a_picture_made_from_another_is_not_turned(kind: str, made: str) -> None:
    image = MADE[made](Image.open(io.BytesIO(phone(kind))))
    np.testing.assert_array_equal(loaded(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_a_picture_straight_from_a_file_is_turned_once(kind: str) -> None:
    data = phone(kind)
    image = Image.open(io.BytesIO(data))
    assert loaded(data).shape == loaded(image).shape == (24, 40, 3)
    np.testing.assert_array_equal(loaded(data), loaded(image))
    np.testing.assert_array_equal(loaded(image), loaded(data))  # the second time too


def black_and_clear(kind: str) -> bytes:
    """Black at the right; at the left something transparent, black too."""
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 0, 0, 0, 0, 0, 0] + [9] * 759)
    image.paste(2, (0, 0, 4, 8))
    return saved(image, kind, transparency=2, optimize=False)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_transparent_colour_that_a_converted_picture_remembers_is_not_used(kind: str, mode: str) -> None:
    image = Image.open(io.BytesIO(black_and_clear(kind)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, about what it remembers
        made = image.convert(mode)
    assert "transparency" in made.info or mode == "L"
    np.testing.assert_array_equal(loaded(made), np.asarray(made.convert("RGB")))
    assert loaded(black_and_clear(kind))[0, :, 0].tolist() == [255] * 4 + [0] * 4


# --- arrays ---------------------------------------------------------------------------------------------


def test_bfloat16_arrays_are_pictures() -> None:
    levels = np.array([0, 0.5, 1], np.float32)
    expected = [0, 128, 255]
    assert loaded(mx.array(levels)[None].astype(mx.bfloat16))[0, :, 0].tolist() == expected

    class Tensor:
        """As PyTorch's, on a GPU: it must be brought to the CPU, and to a type that NumPy has."""

        dtype = "torch.bfloat16"

        def detach(self) -> "Tensor":
            return self

        def cpu(self) -> "Tensor":
            return self

        def float(self) -> np.ndarray:
            return levels[None]

    assert loaded(Tensor())[0, :, 0].tolist() == expected


def test_levels_of_a_zlib_stream_that_goes_on_are_not_waited_for() -> None:
    endless = png(8, 8)[:33] + chunk(b"IDAT", zlib.compress(b"\0" * (64 << 20), 9)) + chunk(b"IEND", b"")
    assert (loaded(endless) == 0).all()
    assert load_image(saved(PICTURE)).size == (5, 7)
