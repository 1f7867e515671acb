"""Pictures from anywhere: what load_image makes of sound ones, and how it refuses the rest."""

import http.server
import importlib.util
import io
import math
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pg_mlx.errors import InputError
from pg_mlx.processor import images
from pg_mlx.processor.images import load_image, to_pixels

GOLDEN = Path(__file__).parent / "golden"
STEMS = sorted(path.stem for path in (GOLDEN / "images").glob("*.png"))
# No two pixels alike, no symmetry, so that a turned, mirrored or shifted picture is another one.
PICTURE = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(7, 5, 3) * 2
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
FORMATS = ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]
MAGIC = {
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "JPEG": b"\xff\xd8\xff\xe0",
    "GIF": b"GIF89a",
    "TIFF": b"II*\0\x08\0\0\0",
    "WEBP": b"RIFF\x40\0\0\0WEBPVP8 ",
    "BMP": b"BM",
}
ALPHA = {0: (255, 255, 255), 128: (127, 127, 127), 255: (0, 0, 0)}
"""Black of this opacity over white."""


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def loaded(source: Any) -> np.ndarray:
    image = load_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(source: Any, name: str = "the picture") -> str:
    with pytest.raises(InputError) as caught:
        load_image(source)
    message = str(caught.value)
    assert name in message
    assert len(message.splitlines()) == 1
    return message


def png_of(width: int, height: int) -> bytes:
    """A header that claims this size, and next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


# --- pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", STEMS)
def test_pixels_are_those_of_hugging_faces_processor(stem):
    golden = mx.load(str(GOLDEN / "pixels.safetensors"))
    pixels = to_pixels(load_image(GOLDEN / "images" / f"{stem}.png"), 56)
    assert np.abs(pixels.transpose(2, 0, 1) - np.array(golden[f"{stem}.white_background"])).max() <= 1e-6
    levels = np.round((pixels + 1) * 127.5).astype(np.uint8)
    np.testing.assert_array_equal(levels, np.array(golden[f"{stem}.resized_uint8_white"]))


def test_bilinear_and_bicubic_differ_and_are_pillows():
    for name, method in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        expected = np.asarray(Image.fromarray(NOISE).resize((17, 17), method), np.float64) / 127.5 - 1
        assert np.abs(to_pixels(Image.fromarray(NOISE), 17, name) - expected).max() <= 1e-6
    assert np.abs(to_pixels(Image.fromarray(NOISE), 17, "bilinear") - expected).max() > 0.05


small_pictures = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)))


@settings(deadline=None, max_examples=60)
@given(small_pictures, st.integers(1, 24), st.sampled_from(["bicubic", "bilinear"]))
def test_pixels_are_float32_squares_within_one(picture, size, resample):
    pixels = to_pixels(load_image(picture), size, resample)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.float32
    assert pixels.min() >= -1
    assert pixels.max() <= 1


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(0, 255)] * 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 24))
def test_a_constant_picture_stays_constant(colour, width, height, size):
    pixels = to_pixels(Image.new("RGB", (width, height), colour), size)
    assert np.abs(pixels - (np.array(colour) / 127.5 - 1)).max() <= 1e-6


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (3, 20000)])
def test_extreme_shapes_are_squeezed_to_the_square(size):
    data = saved(Image.new("RGB", size, (255, 0, 51)))
    pixels = to_pixels(load_image(data), 56)
    assert pixels.shape == (56, 56, 3)
    assert np.abs(pixels - np.array([1, -1, -0.6])).max() <= 1e-6


# --- sources ------------------------------------------------------------------------------------------


@pytest.fixture
def web(monkeypatch) -> Iterator[str]:
    """The address of a server with a few good and many bad answers."""
    monkeypatch.setenv("no_proxy", "*")
    good = saved(PICTURE)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/nonsense":
                self.wfile.write(b"this is no HTTP\r\n\r\n")
                return
            status = {"/good.png": 200, "/short.png": 200, "/text": 200, "/moved": 301, "/to-file": 302}
            status |= {"/to-ftp": 302, "/caf%C3%A9%201.png": 200}
            self.send_response(status.get(self.path, 404))
            if self.path == "/moved":
                self.send_header("Location", "/good.png")
            if self.path == "/to-file":
                self.send_header("Location", "file:///etc/passwd")
            if self.path == "/to-ftp":
                self.send_header("Location", "ftp://127.0.0.1/a.png")
            body = {
                "/good.png": good,
                "/caf%C3%A9%201.png": good,
                "/short.png": good[:-40],
                "/text": b"<html>no picture</html>",
            }.get(self.path, b"")
            self.send_header("Content-Length", str(len(good) if self.path == "/short.png" else len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_kind_of_source_gives_the_same_picture(tmp_path, monkeypatch, web):
    path, data = tmp_path / "picture.png", saved(PICTURE)
    path.write_bytes(data)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    sources = {
        "string": str(path),
        "Path": path,
        "stdin": "-",
        "URL": f"{web}/good.png",
        "URL that moved": f"{web}/moved",
        "URL with an accent and a space": f"{web}/café 1.png",
        "URL in capitals": f"{web}/good.png".replace("http", "HTTP"),
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "BytesIO": io.BytesIO(data),
        "PIL": Image.fromarray(PICTURE),
        "lazy PIL": Image.open(path),
        "uint8": PICTURE,
        "uint8, not contiguous": np.asfortranarray(PICTURE),
        "nested list of floats": (PICTURE / 255).tolist(),
        "float16": (PICTURE / 255).astype(np.float16),
        "float32": (PICTURE / 255).astype(np.float32),
        "float64": PICTURE / 255,
        "mlx uint8": mx.array(PICTURE),
        "mlx float32": mx.array((PICTURE / 255).astype(np.float32)),
    }
    for kind, source in sources.items():
        np.testing.assert_array_equal(loaded(source), PICTURE, err_msg=kind)
    with path.open("rb") as file:
        np.testing.assert_array_equal(loaded(file), PICTURE)


def test_grey_and_transparent_arrays_become_rgb():
    grey = PICTURE[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(loaded(grey), expected)
    np.testing.assert_array_equal(loaded(grey[..., None]), expected)
    for alpha, over_white in ALPHA.items():
        array = np.zeros((2, 3, 4), np.uint8)
        array[..., 3] = alpha
        assert (loaded(array) == over_white).all()


def test_a_tilde_is_home_only_where_it_names_one(tmp_path, monkeypatch):
    (tmp_path / "~draft.png").write_bytes(saved(PICTURE))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(loaded("~/~draft.png"), PICTURE)
    np.testing.assert_array_equal(loaded("~draft.png"), PICTURE)


def test_loading_leaves_the_callers_picture_as_it_was():
    image = Image.fromarray(PICTURE).convert("RGBA")
    result = load_image(image)
    result.paste((9, 9, 9), (0, 0, 5, 7))
    assert image.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(image)[..., :3], PICTURE)


# --- modes --------------------------------------------------------------------------------------------

# How the stored picture comes about from the upright one, for each value of the EXIF tag.
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_gives_the_upright_picture(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = NOISE[:40, :24]
    stored = np.ascontiguousarray(STORED[orientation](upright))
    np.testing.assert_array_equal(loaded(saved(stored, exif=exif)), upright)
    smooth = np.kron(PICTURE, np.ones((8, 8, 1), np.uint8))
    stored = np.ascontiguousarray(STORED[orientation](smooth))
    jpeg = loaded(saved(stored, "JPEG", quality=100, subsampling=0, exif=exif))
    assert np.abs(jpeg.astype(int) - smooth).max() <= 4


def test_unreadable_exif_leaves_the_picture_alone():
    np.testing.assert_array_equal(loaded(saved(PICTURE, exif=b"Exif\0\0not a TIFF header")), PICTURE)


def black(mode: str, alpha: int) -> Image.Image:
    """Black, everywhere of this opacity."""
    if mode == "P":
        image = Image.new("P", (3, 2), 1)
        image.putpalette([250, 250, 250, 0, 0, 0])
        image.info["transparency"] = bytes([255, alpha])
        return image
    if mode == "PA":
        return black("P", alpha).convert("PA")
    image = Image.new("RGBA" if mode.startswith("RGB") else "LA", (3, 2), (0, 0, 0, alpha)[-len(mode) :])
    return image.convert(mode)


@pytest.mark.parametrize("alpha", ALPHA)
@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA", "P"])
def test_transparency_is_laid_over_white(mode, alpha):
    image = black(mode, alpha)
    assert image.mode == mode
    assert (loaded(image) == ALPHA[alpha]).all()


@pytest.mark.parametrize("mode, key", [("RGB", (0, 0, 0)), ("L", 0), ("P", 0), ("1", 0)])
def test_a_transparent_colour_of_a_png_becomes_white(mode, key):
    image = Image.new(mode, (3, 2), key)
    if mode == "P":
        image.putpalette([0, 0, 0])
    assert (loaded(saved(image, transparency=key)) == 255).all()
    assert (loaded(saved(image)) == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"])
def test_every_mode_keeps_its_colours(mode):
    black_and_white = np.zeros((4, 6), np.uint8)
    black_and_white[:, 3:] = 255
    source = Image.fromarray(black_and_white).convert("RGB")
    if mode == "LAB":
        image = Image.merge("LAB", [Image.fromarray(black_and_white), *[Image.new("L", (6, 4), 128)] * 2])
        red = Image.merge("LAB", [Image.new("L", (3, 2), level) for level in (136, 208, 195)])
        assert np.abs(loaded(red).astype(int) - [255, 0, 0]).max() <= 12
    else:
        image = source.convert(mode)
    assert image.mode == mode
    assert np.abs(loaded(image).astype(int) - np.asarray(source)).max() <= 1
    if mode in ("P", "CMYK", "YCbCr", "HSV", "RGBX"):
        red = Image.new("RGB", (3, 2), (255, 0, 0))
        assert np.abs(loaded(red.convert(mode)).astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_not_clipped(mode):
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (6, 1), np.array([[0, 200, 257, 32700, 32896, 65535]], dtype).tobytes())
    expected = [[level] * 3 for level in (0, 1, 1, 127, 128, 255)]
    assert loaded(image)[0].tolist() == expected
    assert loaded(saved(image, "TIFF" if mode == "I" else "PNG"))[0].tolist() == expected


def test_float_pictures_are_scaled_from_one():
    assert loaded(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]
    refusal(Image.fromarray(np.array([[0, 300]], np.float32)))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for kind in ("GIF", "WEBP"):
        options = {} if kind == "GIF" else {"lossless": True}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert (loaded(data) == (255, 0, 0)).all()


# --- refusals -----------------------------------------------------------------------------------------


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
    assert f"{images.MAX_PIXELS}" in refusal(png_of(side, side))


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
    for address in ("ftp://127.0.0.1/a.png", "file:///etc/passwd", "s3://bucket/a.png"):
        assert "only http" in refusal(address, address)


def test_postscript_is_not_run(monkeypatch):
    ran = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: ran.append(True))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert "PostScript" in refusal(eps, "the picture's bytes")
    assert not ran


def test_stdin_that_is_closed_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    refusal("-", "stdin")


def test_an_unknown_resample_is_refused():
    with pytest.raises(InputError, match=r"'lanczos'.*bicubic, bilinear"):
        to_pixels(Image.fromarray(PICTURE), 8, "lanczos")


def test_an_avif_picture_is_not_taken_for_heic():
    assert "HEIC" not in refusal(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + b"\0" * 40, "the picture's bytes")


def test_importing_the_processor_is_cheap():
    heavy = ["urllib.request", "PIL", "numpy", "mlx", "sentencepiece", "tokenizers"]
    code = f"import sys, pg_mlx.processor; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_an_unreachable_server_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}/a.png"
        refusal(address, address)
    refusal("http://[not-an-address/a.png", "http://[not-an-address/a.png")


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_heic_without_its_reader_says_what_to_install(monkeypatch, tmp_path, brand):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pillow_heif" else find_spec(name))
    path = tmp_path / "phone.heic"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0" * 40)
    assert "pip install pillow-heif" in refusal(path, "phone.heic")


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
    assert str(list(array.shape)) in refusal(array, str(array.dtype).removeprefix("mlx.core."))


@pytest.mark.parametrize("thing", [None, object(), {"a": 1}, [[1, 2], [3]], len, ["a.png"]])
def test_things_of_other_types_are_refused_by_type(thing):
    refusal(thing, type(thing).__name__)
