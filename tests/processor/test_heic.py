"""HEIC pictures, as phones take them, are read where pillow-heif is installed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.pictures import refusal
from PIL import Image

from pg_mlx.errors import TooLarge
from pg_mlx.processor.images import load_image

pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed (pg_mlx[heic])")


def heic(*images: Image.Image, turned: int = 1) -> bytes:
    """A HEIC file of these pictures, without loss of their levels. turned: the orientation, as EXIF counts it."""
    exif = Image.Exif()
    exif[0x0112] = turned
    file = pillow_heif.HeifFile()
    for image in images:
        file.add_from_pillow(image)
    out = io.BytesIO()
    file.save(out, quality=-1, chroma=444, exif=exif.tobytes())
    return out.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    """Four areas of different colours, wider than high."""
    levels = np.zeros((32, 48, 3), np.uint8)
    levels[:16, :24], levels[:16, 24:], levels[16:, :24] = (200, 30, 30), (30, 200, 30), (30, 30, 200)
    return Image.fromarray(levels)


def test_a_heic_picture_is_read_from_a_file_and_from_bytes(picture: Image.Image, tmp_path: Path) -> None:
    path = tmp_path / "phone.heic"
    path.write_bytes(heic(picture))
    for source in (path, path.read_bytes()):
        image = load_image(source)
        assert image.mode == "RGB" and image.size == (48, 32)
        assert np.abs(np.asarray(image, int) - np.asarray(picture, int)).max() <= 3  # through YCbCr and back


@pytest.mark.parametrize(("turned", "way"), [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)])
def test_a_turned_picture_is_turned_once(picture: Image.Image, turned: int, way: Image.Transpose) -> None:
    image, expected = load_image(heic(picture, turned=turned)), picture.transpose(way)
    assert image.size == expected.size
    assert np.abs(np.asarray(image, int) - np.asarray(expected, int)).max() <= 3


def test_one_of_several_pictures_is_chosen_by_its_page(picture: Image.Image) -> None:
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = load_image(heic(picture, other), page=2)
    assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() <= 3


def test_a_heic_picture_over_the_limit_or_cut_off_is_refused(picture: Image.Image) -> None:
    data = heic(picture)
    with pytest.raises(TooLarge):
        load_image(data, max_pixels=1000)
    for size in (40, len(data) // 2):
        assert refusal(data[:size], "the picture's bytes")
