"""Sizes are known before anything is decoded, no small file keeps a reader busy, and large ones are read bounded."""

import io
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from helpers.hostile_pictures import before_pixels, bitmap, chunk, icns, icon, iptc, jpeg_of_scans, png, segment, tiff
from helpers.pictures import NOISE, PICTURE, loaded, refusal, saved
from PIL import Image

from pg_mlx.errors import InputError, TooLarge
from pg_mlx.processor import images
from pg_mlx.processor.images import decoding_bytes, load_image

MOST = 1 << 20
PATIENCE_S = 5.0
"""Each refusal takes some milliseconds; the bound is for a machine whose cores are busy."""

PNG = saved(PICTURE)

# --- sizes ----------------------------------------------------------------------------------------------

LARGE = 2000
"""Squared, more than MOST."""


def webp(kind: bytes) -> bytes:
    side = LARGE - 1
    body = {
        b"VP8X": b"\0" * 4 + side.to_bytes(3, "little") * 2,
        b"VP8L": b"\x2f" + (side | side << 14).to_bytes(4, "little") + b"\0" * 5,
        b"VP8 ": b"\0" * 3 + b"\x9d\x01\x2a" + struct.pack("<HH", LARGE, LARGE),
    }[kind]
    return b"RIFF" + struct.pack("<I", 4 + 8 + len(body)) + b"WEBP" + kind + struct.pack("<I", len(body)) + body


def gif_of(frame: int) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\x02\x02L\x01\x00;"


def saved_large(kind: str, **options: object) -> bytes:
    return saved(Image.new("L" if kind == "GIF" else "RGB", (LARGE, LARGE)), kind, **options)


CLAIMS: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: png(LARGE, LARGE),
    "PNG in an icon": lambda: icon(png(LARGE, LARGE)),
    "bitmap in an icon": lambda: icon(struct.pack("<IiiHHIIiiII", 40, LARGE, 2 * LARGE, 1, 32, 0, 0, 0, 0, 0, 0)),
    "BMP": lambda: bitmap(LARGE, LARGE, 24, 0, b""),
    "upside-down BMP": lambda: bitmap(LARGE, -LARGE, 24, 0, b""),
    "frame beyond a GIF's screen": lambda: gif_of(LARGE),
    "TIFF": lambda: tiff({256: (4, 1, LARGE), 257: (4, 1, LARGE), 258: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, 8)}),
    "WEBP, extended": lambda: webp(b"VP8X"),
    "WEBP, lossless": lambda: webp(b"VP8L"),
    "WEBP, lossy": lambda: webp(b"VP8 "),
    "JPEG 2000": lambda: saved_large("JPEG2000"),
    "JPEG 2000 codestream": lambda: saved_large("JPEG2000", no_jp2=True),
    "AVIF": lambda: saved_large("AVIF", speed=10),
    "PPM": lambda: b"P6 %d %d 255\n" % (LARGE, LARGE),
    "plain PBM": lambda: b"P1\n# a comment\n%d %d\n" % (LARGE, LARGE),
    "progressive JPEG": lambda: jpeg_of_scans(LARGE, 1),
    "JPEG, more than twice as wide and high": lambda: saved(Image.new("L", (2 * LARGE, 2 * LARGE)), "JPEG"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_size_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data = CLAIMS[kind]()
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(TooLarge, match=str(MOST)):
        load_image(data, MOST)


@pytest.mark.parametrize("wrapper", [iptc, icns])
def test_a_wrapper_does_not_hide_a_size(wrapper: Callable[[bytes], bytes]) -> None:
    refusal(wrapper(png(LARGE, LARGE)))


def test_an_icon_is_its_largest_picture() -> None:
    sizes = [(16, 16), (48, 48), (32, 32)]
    data = saved(Image.new("RGBA", (48, 48), (255, 0, 0, 255)), "ICO", sizes=sizes)
    assert loaded(data).shape == (48, 48, 3)
    bitmaps = saved(Image.new("RGBA", (48, 48), (0, 0, 255, 128)), "ICO", sizes=sizes, bitmap_format="bmp")
    assert loaded(bitmaps)[0, 0].tolist() == [127, 127, 255]


# --- time -----------------------------------------------------------------------------------------------


def many_empty_idat() -> bytes:
    return before_pixels(png(8, 8, b"\0" * 72), chunk(b"IDAT", b"") * 300_000)


def jpeg_in_tiff() -> bytes:
    inner = jpeg_of_scans(800, 6000)
    tags = {256: (4, 1, 800), 257: (4, 1, 800), 258: (3, 1, 8), 259: (3, 1, 7), 262: (3, 1, 1), 273: (4, 1, -1)}
    return tiff(tags | {277: (3, 1, 1), 278: (4, 1, 800), 279: (4, 1, len(inner))}, inner)


def overlapping_tags() -> bytes:
    tags = {256: (4, 1, 4), 257: (4, 1, 4), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8)}
    tags |= {277: (3, 1, 1), 278: (4, 1, 4), 279: (4, 1, 16)}
    return tiff(tags | dict.fromkeys(range(1000, 5000), (7, 2000000, 8)), b"\0" * 2_100_000)


def many_strips() -> bytes:
    tags = {256: (4, 1, 4), 257: (4, 1, 4), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1_000_000, 200)}
    return tiff(tags | {277: (3, 1, 1), 278: (4, 1, 4), 279: (4, 1_000_000, 200)}, b"\0" * 9_000_000)


def large_tile() -> bytes:
    packed = zlib.compress(b"\0" * (1 << 20))
    tags = {256: (4, 1, 8), 257: (4, 1, 8), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    return tiff(tags | {322: (4, 1, 40_000), 323: (4, 1, 40_000), 324: (4, 1, -1), 325: (4, 1, len(packed))}, packed)


def directories_over_each_other() -> bytes:
    """A chain of 5,000 directories, each of 6,000 tags; they share their bytes."""
    data = bytearray(b"\1\0" * 70_000)
    struct.pack_into("<4sI", data, 0, b"II*\0", 1000)
    for begin in range(1000, 31_000, 6):
        struct.pack_into("<H", data, begin, 6000)
        struct.pack_into("<I", data, begin + 2 + 12 * 6000, begin + 6)
    return bytes(data)


def profiles_without_digits() -> bytes:
    profile = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b" " * (4 << 20), 9))
    return before_pixels(PNG, profile * 1000)


SLOW: dict[str, Callable[[], bytes]] = {
    "scans of a JPEG": lambda: jpeg_of_scans(800, 6000),
    "few scans over many pixels": lambda: jpeg_of_scans(4000, 900),
    "scans of a JPEG in a TIFF": jpeg_in_tiff,
    "comments of a JPEG": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 500_000 + jpeg_of_scans(8, 1)[2:],
    "tables of a JPEG": lambda: b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) * 8000 + jpeg_of_scans(8, 1)[2:],
    "parts of a PNG": many_empty_idat,
    "run lengths": lambda: bitmap(16_000, 10_000, 8, 1, b"\1\0\0\0" * 10_000, 256),
    "a line of run lengths": lambda: bitmap(60_000_000, 1, 8, 1, b"\0\2\0\xff" * 4 + b"\0\1", 256),
    "comments of a map": lambda: b"P3\n10 10\n255\n" + b"#\n" * 1_000_000,
    "a header of comments": lambda: b"P6\n" + b"#\n" * 1_000_000 + b"8 8 255\n" + b"\0" * 192,
    "blocks of a GIF": lambda: gif_of(10)[:19] + b"!\xfe" + b"\1a" * 5_000_000 + b"\0" + gif_of(10)[19:],
    "strips of a TIFF": many_strips,
    "directories over each other": directories_over_each_other,
    "tiles of a TIFF": large_tile,
}


@pytest.mark.parametrize("kind", SLOW)
def test_what_would_keep_a_reader_busy_is_refused_at_once(kind: str) -> None:
    data = SLOW[kind]()
    start = time.process_time()
    with pytest.raises(InputError, match=r"more than|scans|tiles|values"):
        load_image(data)
    assert time.process_time() - start < PATIENCE_S


def test_side_data_that_costs_much_is_not_read() -> None:
    start = time.process_time()
    np.testing.assert_array_equal(loaded(profiles_without_digits()), PICTURE)
    assert loaded(overlapping_tags()).shape == (4, 4, 3)
    assert time.process_time() - start < PATIENCE_S


def test_maps_of_more_than_eight_bits_are_read_at_once() -> None:
    """Pillow takes them a value at a time; 9 million of these would take ten seconds."""
    row = np.array([0, 511, 1023] * 1000, ">u2")
    start = time.process_time()
    picture = loaded(b"P5 3000 3000 1023\n" + row.tobytes() * 3000)
    assert time.process_time() - start < PATIENCE_S
    assert picture[7, :3, 0].tolist() == [0, 127, 255]


def test_ordinary_scans_are_read() -> None:
    progressive = saved(Image.fromarray(NOISE).resize((1000, 1000)), "JPEG", progressive=True)
    assert loaded(progressive).shape == (1000, 1000, 3)
    assert loaded(jpeg_of_scans(64, 60)).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"P1\n# bits\n3 1\n10 1", [0, 255, 0]),
        (b"P1 3 1\n101", [0, 255, 0]),
        (b"P2\n3 1\n15\n0 7 # half\n15\n", [0, 119, 255]),
        (b"P3 3 1 255 0 0 0 9 9 9 255 255 255", [0, 9, 255]),
        (b"P4 3 1\n\xa0", [0, 255, 0]),
        (b"P5\n#c\n3 1\n#c\n255\n\0\x09\xff", [0, 9, 255]),
        (b"P5 3 1 100\n\0\x32\x64", [0, 128, 255]),
        (b"P5 3 1 65535\n\0\0\x80\x80\xff\xff", [0, 128, 255]),
        (b"P6 3 1 255\n" + bytes([0] * 3 + [9] * 3 + [255] * 3), [0, 9, 255]),
    ],
)
def test_maps_of_every_kind(data: bytes, expected: list[int]) -> None:
    assert loaded(data)[0, :, 0].tolist() == expected
    assert "truncated" in refusal(data[:-2]) if data[1:2] in b"56" else True


def test_a_map_that_holds_words_or_too_large_levels_is_refused() -> None:
    assert "no number" in refusal(b"P2 2 1 255\n1 x")
    assert "beyond" in refusal(b"P2 2 1 9\n1 10")
    assert "truncated" in refusal(b"P3 2 1 255\n1 2 3")


# --- memory and size ------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation, turned", [(1, False), (3, False), (6, True), (8, True)])
def test_a_jpeg_over_the_limit_is_read_at_half_its_size(orientation: int, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole = Image.new("RGB", (1200, 1001), (200, 10, 10))
    data = saved(whole, "JPEG", exif=exif)
    with pytest.warns(images.PictureWarning, match="1200 x 1001.*half"):
        image = load_image(data, 1_000_000)
    assert image.size == ((501, 600) if turned else (600, 501))
    assert images.full_size(image) == ((1001, 1200) if turned else (1200, 1001))
    assert np.abs(np.asarray(image).astype(int) - [200, 10, 10]).max() <= 3
    assert images.full_size(load_image(data)) == load_image(data).size
    with pytest.raises(TooLarge):
        load_image(data, 300_000)
    with pytest.raises(TooLarge):  # its coefficients would be held whole
        load_image(saved(whole, "JPEG", progressive=True), 1_000_000)


def test_200_megapixels_are_read() -> None:
    data = saved(Image.new("L", (16320, 12240), 90), "JPEG", quality=40)
    with pytest.warns(images.PictureWarning):
        image = load_image(data)
    assert image.size == (8160, 6120) and abs(image.getpixel((5, 5))[0] - 90) <= 2


def test_the_pixels_of_large_pictures_are_those_of_small_ones() -> None:
    """Strip by strip: the same as in one piece."""
    wide = Image.fromarray(NOISE).resize((1700, 1500)).convert("RGBA")
    wide.putalpha(wide.getchannel("R"))
    expected = Image.alpha_composite(Image.new("RGBA", wide.size, "white"), wide).convert("RGB")
    np.testing.assert_array_equal(loaded(saved(wide, compress_level=1)), np.asarray(expected))


def test_what_decoding_takes_is_known_before() -> None:
    assert decoding_bytes(png(1000, 1000)) == 9_000_000
    assert decoding_bytes(saved(PICTURE, "WEBP")) > decoding_bytes(saved(PICTURE, "PNG"))
    assert decoding_bytes(io.BytesIO(saved(PICTURE, "JPEG")).getvalue()) == 350
