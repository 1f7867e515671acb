"""What is no picture, or one that is too large: load_image refuses it by name, in one line."""

import importlib.util
import io
import math
import socket
import sys
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import pytest
from helpers.hostile_pictures import png
from helpers.pictures import NOISE, PICTURE, loaded, picture_server, refusal, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pg_mlx.errors import InputError
from pg_mlx.ops.device import dtype_name
from pg_mlx.processor import images
from pg_mlx.processor.images import load_image, to_pixels

FORMATS = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "PPM", "JPEG2000", "AVIF"]
MAGIC = {
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "JPEG": b"\xff\xd8\xff\xe0",
    "GIF": b"GIF89a",
    "TIFF": b"II*\0\x08\0\0\0",
    "WEBP": b"RIFF\x40\0\0\0WEBPVP8 ",
    "BMP": b"BM",
    "ICO": b"\0\0\1\0\1\0",
    "PPM": b"P6 ",
    "JPEG2000": b"\xff\x4f\xff\x51",
    "AVIF": b"\0\0\0\x18ftypavif",
}


# --- files and bytes ----------------------------------------------------------------------------------


def test_files_that_are_no_pictures_are_refused_by_name(tmp_path):
    contents = {"empty.png": b"", "notes.txt": b"no picture at all", "line\nbreak.png": b"no picture"}
    reasons = {"empty.png": "is empty", "notes.txt": "not a picture", "line\nbreak.png": "not a picture"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert reasons[name] in refusal(tmp_path / name, name.split("\n")[0])
    assert "no such picture" in refusal(tmp_path / "missing.png", "missing.png")
    assert refusal(tmp_path, "folder") == f"{tmp_path} is a folder, not a picture"
    refusal("nul\0byte.png", "nul")
    refusal("x" * 5000, "xxx")
    refusal("~nobody-of-this-name/a.png", "~nobody-of-this-name/a.png")


def test_open_files_that_cannot_be_read_as_bytes_are_refused_by_name(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(saved(PICTURE))
    with path.open(encoding="utf-8") as text:
        assert "open as text" in refusal(text, "picture.png")
    refusal(text, "picture.png")  # closed by now
    with (tmp_path / "written.png").open("wb") as write_only:
        refusal(write_only, "written.png")
    assert "open as text" in refusal(io.StringIO("no picture"), "the open file")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.01, 0.1, 0.5, 0.9])
def test_truncated_pictures_are_refused(tmp_path, kind, part):
    data = saved(NOISE, kind)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(part * len(data))])
    refusal(path, "cut.img")


def test_a_png_whose_header_fails_its_checksum_is_refused():
    data = bytearray(saved(PICTURE))
    assert data[12:16] == b"IHDR"
    data[29] ^= 1
    refusal(bytes(data), "the picture's bytes")


@pytest.mark.parametrize("side", [15_000, 60_000])
def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding(side):
    assert f"{images.MAX_PIXELS}" in refusal(png(side, side))


def test_pixels_are_counted_for_every_kind_of_source(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 7 * 5 - 1)
    for source in (saved(PICTURE), Image.fromarray(PICTURE), PICTURE):
        refusal(source, "34")
    monkeypatch.setattr(images, "MAX_PIXELS", 7 * 5)
    np.testing.assert_array_equal(loaded(PICTURE), PICTURE)


def test_bytes_are_counted_up_to_the_limit_itself(tmp_path, monkeypatch):
    path, data = tmp_path / "big.png", saved(PICTURE)
    path.write_bytes(data)
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    refusal(path, "big.png")
    refusal(io.BytesIO(data), "the open file")
    for source in (data, bytearray(data), memoryview(data)):
        assert "too much" in refusal(source, "the picture's bytes")
    monkeypatch.setattr(images, "MAX_BYTES", len(data))
    np.testing.assert_array_equal(loaded(path), PICTURE)


def any_picture_or_refusal(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "MAX_PIXELS", 1 << 20)  # so that a lying header costs little
        try:
            assert load_image(data).mode == "RGB"
        except InputError as error:
            assert len(str(error).splitlines()) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None, max_examples=60)
@given(garbage=st.binary(max_size=200))
def test_garbage_behind_a_magic_number_is_a_picture_or_refused(kind, garbage):
    any_picture_or_refusal(MAGIC[kind] + garbage)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
@settings(deadline=None, max_examples=80)
@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_picture_with_changed_bytes_is_a_picture_or_refused(kind, changes):
    data = bytearray(saved(NOISE[:6, :9], kind))
    for place, value in changes:
        data[place % len(data)] = value
    any_picture_or_refusal(bytes(data))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_garbage_without_a_header_is_refused(kind):
    refusal(MAGIC[kind] + b"\xff\xfe" * 40, "the picture's bytes")


def test_postscript_is_not_run(monkeypatch):
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: ran.append(True))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert "PostScript" in refusal(eps, "the picture's bytes")
    assert not ran


def test_an_avif_picture_is_not_taken_for_heic():
    assert "HEIC" not in refusal(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + b"\0" * 40, "the picture's bytes")


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_without_its_reader_says_what_to_install(monkeypatch, tmp_path, brand):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pillow_heif" else find_spec(name))
    path = tmp_path / "phone.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0" * 40)
    assert "pip install pillow-heif" in refusal(path, "phone.heic")


# --- addresses ----------------------------------------------------------------------------------------


@pytest.fixture
def web() -> Iterator[str]:
    with picture_server() as address:
        yield address


@pytest.mark.parametrize("page", ["/missing", "/to-file", "/text", "/short.png", "/nonsense"])
def test_addresses_without_a_picture_are_refused_by_name(web, page):
    message = refusal(web + page, web + page)
    assert "root:" not in message
    if page == "/missing":
        assert "404" in message


def test_a_picture_from_the_web_is_bounded(web, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 20)
    message = refusal(f"{web}/good.png", f"{web}/good.png")
    assert "too much" in message
    assert message.count(web) == 1


def test_a_redirect_to_ftp_is_not_followed(web, monkeypatch):
    asked = []
    monkeypatch.setattr("urllib.request.FTPHandler.ftp_open", lambda *_: asked.append(True))
    refusal(f"{web}/to-ftp", f"{web}/to-ftp")
    assert not asked


def test_addresses_of_other_kinds_are_refused():
    for address in ("ftp://127.0.0.1/a.png", "s3://bucket/a.png"):
        assert "only http" in refusal(address, address)


def test_an_unreachable_server_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}/a.png"
        refusal(address, address)
    refusal("http://[not-an-address/a.png", "http://[not-an-address/a.png")


# --- everything else ----------------------------------------------------------------------------------


def test_stdin_that_is_closed_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    refusal("-", "stdin")


def test_an_unknown_resample_is_refused():
    with pytest.raises(InputError, match=r"'lanczos'.*bicubic, bilinear"):
        to_pixels(Image.fromarray(PICTURE), 8, "lanczos")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5, np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.zeros((4, 4, 3), bool),
        np.zeros((4, 4, 3), complex),
        np.full((4, 4, 3), np.nan, np.float32),
        np.full((4, 4, 3), math.inf),
        np.full((4, 4, 3), -0.01),
        np.full((4, 4, 3), 1.01),
        np.full((4, 4, 3), 255.0),
        mx.zeros((4, 4, 3), mx.int32),
    ],
    ids=lambda array: f"{array.dtype}{list(array.shape)}",
)
def test_arrays_that_are_no_pictures_are_refused_by_shape_and_dtype(array):
    assert str(list(array.shape)) in refusal(array, dtype_name(array.dtype))


@pytest.mark.parametrize("thing", [None, object(), {"a": 1}, [[1, 2], [3]], len, ["a.png"]])
def test_things_of_other_types_are_refused_by_type(thing):
    refusal(thing, type(thing).__name__)


def test_an_object_that_fails_to_become_an_array_is_named_with_its_failure():
    class Torn:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("torn")

    with pytest.raises(InputError, match=r"object of type Torn \(RuntimeError\)"):
        load_image(Torn())
