"""What of a file reaches Pillow: side data neither ends the reading of a sound picture nor costs anything."""

import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from helpers.hostile_pictures import before_pixels, chunk, segment, tiff
from helpers.paths import ROOT
from helpers.pictures import NOISE, PICTURE, loaded, refusal, saved
from PIL import Image, ImageCms, PngImagePlugin

# --- sound pictures with much beside them ---------------------------------------------------------------


def with_text(zip_it: bool) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 1_500_000, zip=zip_it)
    return saved(PICTURE, pnginfo=info)


def with_profile(kind: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + b"\0" * 1_500_000
    return saved(PICTURE, kind, icc_profile=profile, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {}))


PNG = saved(PICTURE)
BOMB = zlib.compress(b"A" * (64 << 20), 9)


@pytest.mark.parametrize(
    "data",
    [
        with_text(False),
        with_text(True),
        with_profile("PNG"),
        with_profile("TIFF"),
        before_pixels(PNG, chunk(b"zTXt", b"k\0\0" + BOMB)),
        before_pixels(PNG, chunk(b"iTXt", b"k\0\1\0\0\0" + BOMB)),
        before_pixels(PNG, chunk(b"iCCP", b"k\0\0" + BOMB)),
        before_pixels(PNG, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"A" * (1 << 20), 9)) * 300),
        before_pixels(PNG, chunk(b"tEXt", b"no separator")),
        before_pixels(PNG, chunk(b"iCCP", b"cut off")),
        before_pixels(PNG, chunk(b"gAMA", b"\0") + chunk(b"cHRM", b"") + chunk(b"pHYs", b"\0")),
        before_pixels(PNG, chunk(b"tEXt", b"a\0b")[:-4] + b"\0\0\0\0"),  # a checksum of text that is wrong
        before_pixels(PNG, chunk(b"eXIf", b"MM\0*\0\0\0\x08" + b"\xff\xff" * 9)),
        PNG[:-12],  # without its end
        PNG[:-12] + b"rubbish behind it",
    ],
    ids=range(15),
)
def test_a_png_is_read_whatever_lies_beside_its_pixels(data: bytes) -> None:
    np.testing.assert_array_equal(loaded(data), PICTURE)


def jpeg(**options: object) -> bytes:
    return saved(NOISE, "JPEG", quality=90, **options)


TORN_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x01\0\0"
MANY_TAGS = b"Exif\0\0MM\0*\0\0\0\x08\x15\x55" + b"".join(
    struct.pack(">HHII", number, 7, 60_000, 8) for number in range(5461)
)


@pytest.mark.parametrize(
    "extra",
    [
        segment(0xE1, TORN_EXIF),
        segment(0xE1, MANY_TAGS[:65_000]) * 20,
        segment(0xE1, b"Exif\0\0no header"),
        segment(0xE2, b"ICC_PROFILE\0\1\2" + b"\0" * 60_000) * 60,
        segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
        segment(0xFE, b"c" * 60_000) * 100,
        b"\xff" * 100_000,
        segment(0xED, b"Photoshop 3.0\x008BIM" + b"\xff" * 30),
    ],
    ids=range(8),
)
def test_a_jpeg_is_read_whatever_lies_before_its_pixels(extra: bytes) -> None:
    plain = jpeg()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(loaded(plain[:2] + extra + plain[2:]), loaded(plain))


def test_torn_exif_is_silent_in_a_process_of_its_own(tmp_path) -> None:
    paths = []
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        paths.append(tmp_path / f"torn.{kind.lower()}")
        data = saved(PICTURE, kind) if kind == "TIFF" else saved(PICTURE, kind, exif=TORN_EXIF)
        paths[-1].write_bytes(data)
    code = "import sys; from pg_mlx.processor import load_image; [load_image(path) for path in sys.argv[1:]]"
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code, *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_jpeg_that_lacks_only_its_end_mark_is_read(options: dict, cut: int) -> None:
    data = jpeg(**options)
    np.testing.assert_array_equal(loaded(data[:-cut]), loaded(data))
    grey = saved(Image.fromarray(NOISE).convert("L"), "JPEG", **options)
    np.testing.assert_array_equal(loaded(grey[:-cut]), loaded(grey))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("cut", [4, 9, 40, 400])
def test_a_jpeg_that_lacks_pixels_too_is_refused(options: dict, cut: int) -> None:
    assert "truncated" in refusal(jpeg(**options)[:-cut])


def test_a_tiff_of_many_values_for_each_pixel_is_refused_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    tags = {256: (4, 1, 4), 257: (4, 1, 1), 258: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, 8), 277: (3, 1, 200)}
    assert "200 values" in refusal(tiff(tags))
    assert not caplog.records


def test_comments_of_a_gif_are_skipped() -> None:
    data = saved(PICTURE[..., 0], "GIF")
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 20_000 + b"\0"
    begin = 13 + (3 << ((data[10] & 7) + 1))
    np.testing.assert_array_equal(loaded(data[:begin] + comment + data[begin:]), loaded(data))
