"""Pictures from anywhere, of any mode: what load_image and to_pixels make of sound ones."""

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from helpers.paths import GOLDEN, ROOT
from helpers.pictures import NOISE, PICTURE, loaded, picture_server, refusal, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from pg_mlx.processor.images import PictureWarning, load_image, to_pixels

STEMS = sorted(path.stem for path in (GOLDEN / "images").glob("*.png"))
ALPHA = {0: (255, 255, 255), 128: (127, 127, 127), 255: (0, 0, 0)}
"""Black of this opacity over white."""


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


def test_importing_the_processor_is_cheap():
    heavy = ["urllib.request", "PIL", "numpy", "mlx", "sentencepiece", "tokenizers"]
    code = f"import sys, pg_mlx.processor; print([m for m in {heavy} if m in sys.modules])"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


# --- sources ------------------------------------------------------------------------------------------


@pytest.fixture
def web() -> Iterator[str]:
    with picture_server() as address:
        yield address


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
        with pytest.warns(PictureWarning, match="3 frames"):
            assert (loaded(data) == (255, 0, 0)).all()
