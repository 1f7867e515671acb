"""Pages of a TIFF and frames of an animation: one is read, it is said that there are more, and any can be chosen."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers.hostile_pictures import tiff
from helpers.pictures import PICTURE, loaded, refusal, saved
from PIL import Image

from pg_mlx.errors import InputError
from pg_mlx.processor import notes
from pg_mlx.processor.images import PictureWarning, load_image, pages

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
LOSSLESS = {"WEBP": {"lossless": True}, "TIFF": {}, "GIF": {}, "PNG": {}}
LOSSY = {"AVIF": {"quality": 100, "subsampling": "4:4:4"}, "MPO": {"quality": 100}}
KINDS = LOSSLESS | LOSSY


def of_three(kind: str, size: tuple[int, int] = (16, 16)) -> bytes:
    first, *others = (Image.new("RGB", size, colour) for colour in COLOURS)
    return saved(first, kind, save_all=True, append_images=others, **KINDS[kind])


def is_colour(image: Image.Image, number: int) -> bool:
    return bool(np.abs(np.asarray(image).astype(int) - COLOURS[number]).max() <= 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_is_read_and_it_is_said_that_there_are_more(kind: str) -> None:
    unit = "pages" if kind in ("TIFF", "MPO") else "frames"
    with pytest.warns(PictureWarning, match=rf"the picture's bytes has 3 {unit}.*#page=2") as said:
        image = load_image(of_three(kind))
    assert is_colour(image, 0)
    assert len(said) == 1 and said[0].filename == __file__


def test_commands_print_it_as_one_line_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "line\nbreak.tif"
    path.write_bytes(of_three("TIFF"))
    with warnings.catch_warnings():
        notes.print_as_lines()
        load_image(path)
        load_image(path)
    line = f"note: {tmp_path}/line break.tif has 3 pages, of which one is read; #page=2 behind the name chooses\n"
    assert capsys.readouterr().err == 2 * line


@pytest.mark.parametrize("kind", KINDS)
def test_any_can_be_chosen_without_a_word(tmp_path: Path, kind: str) -> None:
    data = of_three(kind)
    path = tmp_path / f"three.{kind.lower()}"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3):
            assert is_colour(load_image(data, page=number + 1), number)
            assert is_colour(load_image(data, page=np.int64(number + 1)), number)
            assert is_colour(load_image(f"{path}#page={number + 1}"), number)
            assert is_colour(load_image(f"file://{path}#page={number + 1}"), number)
        every = list(pages(data))
    assert [is_colour(image, number) for number, image in enumerate(every)] == [True] * 3
    with pytest.raises(InputError, match=r"has 3 .*no .* 4"):
        load_image(data, page=4)
    refusal(f"{path}#page=0", path.name)
    refusal(f"{path}#page=99", path.name)


def test_a_picture_of_one_page_has_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "AVIF"):
            assert [image.size for image in pages(saved(PICTURE, kind))] == [(5, 7)]
        np.testing.assert_array_equal(np.asarray(next(pages(PICTURE))), PICTURE)
    with pytest.raises(InputError, match="has 1 page, so there is no page 2"):
        load_image(saved(PICTURE, "JPEG"), page=2)


@pytest.mark.parametrize("page", [0, -1, 1.0, "2", True])
def test_a_page_is_a_whole_number_from_one(page: object) -> None:
    with pytest.raises(InputError, match="whole numbers from 1"):
        load_image(saved(PICTURE), page=page)


def test_a_file_may_really_be_called_so(tmp_path: Path) -> None:
    (tmp_path / "scan.png#page=2").write_bytes(saved(PICTURE))
    np.testing.assert_array_equal(loaded(tmp_path / "scan.png#page=2"), PICTURE)


def test_pages_of_a_tiff_have_their_own_sizes_modes_and_directions() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    first, others = Image.new("RGB", (8, 6), COLOURS[0]), [Image.new("L", (5, 4), 7), Image.new("1", (9, 3), 1)]
    for options in ({}, {"compression": "tiff_lzw"}, {"big_tiff": True}):
        data = saved(first, "TIFF", save_all=True, append_images=others, **options)
        assert [(image.size, image.getpixel((0, 0))) for image in pages(data)] == [
            ((8, 6), COLOURS[0]),
            ((5, 4), (7, 7, 7)),
            ((9, 3), (255, 255, 255)),
        ]
    turned = saved(first, "TIFF", save_all=True, append_images=others, exif=exif)
    assert next(pages(turned)).size == (6, 8)


def test_smaller_copies_are_no_pages() -> None:
    """Maps and scans have a pyramid of them; without this each would be said to have many pages."""
    tags = {256: (4, 1, 4), 257: (4, 1, 1), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8)}
    tags |= {277: (3, 1, 1), 278: (4, 1, 1), 279: (4, 1, 4)}
    begin = len(tiff(tags))
    small = tiff(tags | {254: (4, 1, 1)})[8:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert loaded(tiff(tags, small, next_page=begin)).shape == (1, 4, 3)
    page = tiff(tags | {254: (4, 1, 2)})[8:]
    with pytest.warns(PictureWarning, match="2 pages"):
        load_image(tiff(tags, page, next_page=begin))


@pytest.mark.parametrize("word", [b"hdrgm:Version", b"HDRGainMap", b"GContainer"])
def test_what_only_goes_with_a_phones_picture_is_no_page(word: bytes) -> None:
    data = of_three("MPO")
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + word
    noted = data[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp + data[2:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_colour(load_image(noted), 0)


def test_frames_are_drawn_over_those_before_them() -> None:
    frames = [Image.new("RGB", (20, 20), COLOURS[0]) for _ in range(3)]
    frames[1].paste(COLOURS[1], (5, 5, 10, 10))
    frames[2].paste(COLOURS[1], (5, 5, 10, 10))
    frames[2].paste(COLOURS[2], (12, 12, 18, 18))
    for kind in ("GIF", "PNG", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **LOSSLESS[kind])
        for number, (image, frame) in enumerate(zip(pages(data), frames, strict=True)):
            np.testing.assert_array_equal(np.asarray(image), np.asarray(frame))
            np.testing.assert_array_equal(np.asarray(load_image(data, page=number + 1)), np.asarray(frame))


def test_a_pil_image_stands_on_its_frame(tmp_path: Path) -> None:
    path = tmp_path / "three.gif"
    path.write_bytes(of_three("GIF"))
    image = Image.open(path)
    image.seek(2)
    assert is_colour(load_image(image), 2)
    with pytest.raises(InputError, match="seek"):
        load_image(image, page=2)


def test_a_later_page_that_is_damaged_leaves_the_others(tmp_path: Path) -> None:
    data = of_three("TIFF", (64, 64))
    read = pages(data[: len(data) // 2])
    assert is_colour(next(read), 0)
