"""Pictures with their regions drawn in: right places, readable labels, at any size and in any script."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import ROOT
from helpers.pictures import saved
from helpers.regions import blob, region, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pg_mlx.processor.images import load_image
from pg_mlx.regions import Region, fonts
from pg_mlx.regions.draw import annotate, color_of, text_color

CENTRE = (256, 256, 768, 768)
SIZES = [(640, 420), (300, 480), (24, 18), (1, 1), (6000, 4000), (2000, 12), (9, 1500), (320, 320)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pictures_of_any_size_are_drawn_and_labels_are_inside(size: tuple[int, int], monkeypatch):
    """The text's own rectangle, as Pillow measures it, lies within the picture, and is high enough to read."""
    rectangles: list[tuple[float, float, float, float]] = []
    original = ImageDraw.ImageDraw.text

    def note(self, position, text, **options):
        rectangles.append(self.textbbox(position, text, font=options["font"]))
        original(self, position, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    found = [region("cat", (5, 5, 500, 500), size, 0.9, mask=True), region("dog", (300, 300, 1020, 1020), size)]
    drawn = annotate(scene(size), found)
    assert drawn.mode == "RGB" and len(rectangles) == 2
    assert drawn.width >= size[0] and drawn.height >= size[1] and max(drawn.size) >= 320
    for x0, y0, x1, y1 in rectangles:
        assert x0 >= 0 and y0 >= 0 and x1 <= drawn.width and y1 <= drawn.height
        assert y1 - y0 >= 8 and (y1 - y0) * 60 >= min(drawn.size)  # of the letters, not of the line


def test_nothing_but_boxes_labels_and_masks_is_changed():
    size = (640, 480)
    image = scene(size)
    one = region("", CENTRE, size, mask=True)
    drawn = annotate(image, [one])
    changed = (np.asarray(drawn) != np.asarray(image)).any(axis=2)
    x0, y0, x1, y1 = one.box_pixels
    allowed = np.zeros_like(changed)
    allowed[y0 - 2 : y1 + 3, x0 - 2 : x1 + 3] = True
    assert not changed[~allowed].any()
    inner = np.zeros_like(changed)
    inner[y0 + 9 : y1 - 9, x0 + 9 : x1 - 9] = True
    assert one.mask is not None and np.array_equal(changed & inner, one.mask & inner)
    assert np.array_equal(np.asarray(annotate(image, [])), np.asarray(image))


@pytest.mark.parametrize("size", [(640, 480), (101, 333), (20, 31)])
def test_the_boxes_edges_are_on_the_pixels_of_the_box(size: tuple[int, int]):
    one = region("", CENTRE, size)
    drawn = annotate(Image.new("RGB", size, "gray"), [one])
    factor = drawn.width // size[0]
    rows, columns = np.nonzero((np.asarray(drawn) == color_of("")).all(axis=2))
    x0, y0, x1, y1 = (value * factor for value in one.box)
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert np.abs(np.array(edges) - [x0, y0, x1, y1]).max() <= 0.5


def test_a_translucent_mask_still_shows_the_picture():
    size = (640, 480)
    image = scene(size)
    drawn = annotate(image, [region("cat", (0, 0, 1023, 1023), size, mask=True)])
    before, after = (np.asarray(one, np.float64)[200:280, 260:380] for one in (image, drawn))
    for channel in range(3):
        assert np.corrcoef(before[..., channel].ravel(), after[..., channel].ravel())[0, 1] > 0.9
    assert np.abs(before - after).mean() > 20


def test_a_turned_picture_is_drawn_upright():
    """The camera's pixels lie on their side; the box must be where the upright picture has its red corner."""
    upright = Image.new("RGB", (60, 100), "white")
    upright.paste("red", (0, 0, 30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    file = saved(upright.rotate(90, expand=True), "JPEG", quality=95, subsampling=0, exif=exif)
    assert Image.open(io.BytesIO(file)).size == (100, 60)
    image = load_image(file)
    assert image.size == (60, 100)
    drawn = annotate(image, [region("", (0, 0, 205, 512), image.size)])
    factor = drawn.width // 60
    inside = np.asarray(drawn.crop((6 * factor, 6 * factor, 24 * factor, 14 * factor)), np.float64).mean(axis=(0, 1))
    assert inside[0] > 200 and inside[1] < 60


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "LA", "1"])
def test_pictures_of_any_mode_are_drawn(mode: str):
    image = load_image(saved(scene((300, 200)).convert(mode), "TIFF"))
    drawn = annotate(image, [region("cat", CENTRE, image.size, 0.5, mask=True)])
    assert drawn.mode == "RGB" and (np.asarray(drawn.crop((0, 0, 300, 200))) != np.asarray(image)).any()


# --- colours ------------------------------------------------------------------------------------------


@settings(max_examples=1000, deadline=None)
@given(st.text(max_size=20))
def test_every_labels_text_stands_out_from_its_ground(label: str):
    """WCAG 2 asks for a contrast of 4.5."""
    color = color_of(label)
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    contrast = 1.05 / (luminance + 0.05) if text_color(color) == "white" else (luminance + 0.05) / 0.05
    assert contrast >= 4.5


def test_a_labels_colour_is_the_same_in_every_run_and_others_differ():
    code = "from pg_mlx.regions.draw import color_of; print(color_of('cat'), color_of('犬'))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT, env={"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}, capture_output=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert runs == {f"{color_of('cat')} {color_of('犬')}\n".encode()}
    labels = ["cat", "dog", "person", "car", "chair", "bottle", "tree", "bird"]
    assert len({color_of(label) for label in labels}) == len(labels)


# --- letters ------------------------------------------------------------------------------------------


def test_latin_needs_no_font_of_the_system(monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())
    assert fonts.font_for("cat, 3 dogs: 0.93 #", 20) is not None and fonts.font_for("", 20) is not None
    assert fonts.font_for("犬", 20) is None


def test_a_label_without_a_font_is_drawn_as_its_number_and_reported(monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())
    written: list[str] = []
    original = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, text, **o: (written.append(text), original(self, at, text, **o))
    )
    size = (640, 480)
    unknown: list[str] = []
    annotate(scene(size), [region("cat", CENTRE, size), region("犬", CENTRE, size, 0.5)], unknown)
    assert unknown == ["犬"] and written == ["cat", "#2 0.50"]


@pytest.mark.parametrize("label", ["собака", "σκύλος", "chien à l'école", "כלב", "คน", "कुत्ता"])
def test_other_scripts_are_drawn_with_a_font_that_has_them_or_reported(label: str):
    """Where a font is said to have a label, its letters are not all alike, as those of missing ones are."""
    font = fonts.font_for(label, 40)
    if font is None:
        unknown: list[str] = []
        annotate(scene((640, 480)), [region(label, CENTRE, (640, 480))], unknown)
        assert unknown == [label]
        return
    letters = {character for character in label if character.isalpha()}
    assert len({bytes(font.getmask(letter)) for letter in letters}) == len(letters)


def test_right_to_left_needs_layout(monkeypatch):
    monkeypatch.setattr(fonts, "_has_raqm", lambda: False)
    assert fonts.font_for("כלב", 20) is None and fonts.font_for("cat", 20) is not None


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60), st.tuples(st.integers(1, 400), st.integers(1, 400)), st.integers(1, 6))
def test_any_label_can_be_drawn(label: str, size: tuple[int, int], count: int):
    found = [
        Region(label, (i * 30, i * 30, i * 30 + 1, 1023), size, codes=(0,) * 16, decoded=blob(), score=i / 10)
        for i in range(count)
    ]
    annotate(scene(size), found)
