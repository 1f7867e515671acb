"""Pictures from anywhere in RGB, the right way up.

Pictures may come from strangers. So bytes are counted, their first ones decide on the reader, and headers are read
before anything is decoded. sources.py finds the bytes, formats.py names them, containers/ takes out what makes pixels,
decoding.py has Pillow decode that, and pixels.py brings it to RGB.
"""

from __future__ import annotations

import operator
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..limits import MAX_PIXELS
from .containers.ifd import orientation_of
from .decoding import check_size, decode, is_halved, no_such_page, quiet, read_content, reason, seek, turned
from .notes import PictureWarning
from .pixels import from_array, to_pixels, to_rgb
from .sources import Given, read_source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

    from .containers import Content

__all__ = ["MAX_BYTES", "PictureWarning", "full_size", "load_image", "pages", "to_pixels"]

MAX_BYTES = 256 << 20
_ORIENTATION = 0x0112
_BYTES_PER_PIXEL = {"WEBP": 17, "JPEG": 10, "JPEG2000": 25, "AVIF": 14, "HEIF": 14, "TIFF": 13}
"""Measured at 64 megapixels, with alpha where the format has it; 4 of them are the result."""
_FRAMED = ("AVIF", "HEIF")
"""Formats whose reader alone can tell how many frames there are."""


def load_image(source: Any, max_pixels: int | None = None, page: int | None = None) -> Image.Image:
    """A picture in RGB, the right way up.

    source: a path ("-" is stdin), an http(s) or file address, a data URI, bytes, an open binary file, a PIL image, or
    an array: uint8 or 0..1 float, [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
    max_pixels: MAX_PIXELS if not given. A JPEG of up to four times as many is read at half its size, with a
    PictureWarning; full_size tells the other.
    page: which page of a TIFF, or frame of an animation, from 1; `#page=2` behind a path or address says it too. The
    default is the first, with a PictureWarning if there are more.

    A file or bytes are turned as EXIF says, and laid over white where they are transparent. A PIL image is so too if it
    comes straight from a file (its `format` is set); one that was made from another is taken as it is. Any mode and bit
    depth becomes 8-bit RGB: see pixels.to_rgb for what has no range of its own. A BMP or icon whose alpha is 0
    everywhere is opaque.
    Raises InputError, one line that names the source, for everything that is not a sound picture of bounded size; it is
    a TooLarge if only the size is wrong.
    """
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    page = _page_number(page)
    given = read_source(source, MAX_BYTES)
    if given is None:
        return _from_object(source, max_pixels, page)
    wanted = page or given.page
    if wanted == 0:
        raise InputError(f"{given.name}: pages are counted from 1")
    content = read_content(given.data, given.name, wanted or 1)
    image = decode(content, given.name, max_pixels)
    count = getattr(image, "n_frames", 1) if content.format in _FRAMED else content.pages
    if wanted is None and count > 1:
        _warn(f"{given.name} has {count} {content.unit}, of which one is read; #page=2 behind the name chooses", 3)
    return _finish(image, content, given.name)


def pages(source: Any, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """Every page of a TIFF or frame of an animation, each as load_image gives it; of another picture that one.

    Raises what load_image does, at the page that is at fault.
    """
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    given = read_source(source, MAX_BYTES)
    if given is None or given.page is not None:
        yield load_image(source, max_pixels)
        return
    first = read_content(given.data, given.name, 1)
    image = decode(first, given.name, max_pixels)
    count = getattr(image, "n_frames", 1) if first.format in _FRAMED else first.pages
    if first.unit == "frames" and count > 1:
        yield from _frames(given, count, max_pixels)
        return
    yield _finish(image, first, given.name)
    for number in range(2, count + 1):
        content = read_content(given.data, given.name, number)
        yield _finish(decode(content, given.name, max_pixels), content, given.name)


def count_pages(source: Any) -> int:
    """How many pages or frames `pages` would give; 1 if the source names one of them. Raises what load_image does."""
    given = read_source(source, MAX_BYTES)
    if given is None or given.page is not None:
        return 1
    content = read_content(given.data, given.name, 1)
    if content.format not in _FRAMED:
        return content.pages
    return getattr(decode(content, given.name, MAX_PIXELS), "n_frames", 1)


def decoding_bytes(data: bytes, max_pixels: int | None = None) -> int:
    """About how many bytes load_image takes at its peak for the first page, beside `data`; 0 where the header does not
    say. Nothing is decoded. max_pixels: as in load_image. Raises what load_image does for bytes that are no picture,
    and TooLarge for too many pixels."""
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    content = read_content(data, "the picture's bytes", 1)
    if content.size is None:
        return 0
    half = is_halved(content, max_pixels)
    width, height = (side // 2 for side in content.size) if half else content.size
    check_size((width, height), "the picture's bytes", max_pixels, content.size)
    return width * height * _BYTES_PER_PIXEL.get(content.format, 9)


def full_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels of the picture that load_image read: those of `image`, unless it was read smaller."""
    size: tuple[int, int] = getattr(image, "full_size", image.size)
    return size


def _page_number(page: Any) -> int | None:
    if page is None:
        return None
    try:
        number = operator.index(page)
    except TypeError:
        number = 0
    if number < 1 or isinstance(page, bool):
        raise InputError(f"page is {page!r}, but pages are whole numbers from 1")
    return number


def _frames(given: Given, count: int, max_pixels: int) -> Iterator[Image.Image]:
    """The frames one after the other, by one reader, since each is drawn over those before it."""
    content = read_content(given.data, given.name, count)
    image = decode(replace(content, frame=0), given.name, max_pixels)
    for number in range(count):
        if number:
            seek(image, number, given.name, content.unit)
            try:
                image.load()
            except Exception as error:
                raise InputError(f"{given.name} is truncated or damaged: {reason(error)}") from None
            check_size(image.size, given.name, max_pixels)
        frame = image.copy()  # not the reader's own, which changes
        yield _finish(frame, content, given.name)


def _finish(image: Image.Image, content: Content, name: str) -> Image.Image:
    """A decoded picture in RGB, upright, with its full size beside it if it was read smaller."""
    options = (content.white, content.inverted, content.levels, content.trusted_alpha)
    orientation = content.orientation
    if content.format in ("WEBP", "AVIF"):  # their readers hand it on unread
        orientation = orientation_of(image.info.get("exif", b""), image.info.get("xmp", b""))
    upright = turned(_rgb(image, name, *options), orientation)
    if content.size is not None and content.halves and image.size != content.size:
        width, height = content.size
        _warn(f"{name} has {width} x {height} pixels, more than the limit, and is read at half its width and height", 4)
        upright.full_size = (height, width) if orientation >= 5 else (width, height)  # type: ignore[attr-defined]
    return upright


def _rgb(image: Image.Image, name: str, *options: Any, **more: Any) -> Image.Image:
    try:
        return to_rgb(image, *options, **more)
    except InputError as error:
        raise InputError(f"{name} is not a picture: {error}") from None
    except Exception as error:
        raise InputError(f"{name} has mode {image.mode}, which cannot be brought to RGB: {reason(error)}") from None


def _from_object(source: Any, max_pixels: int, page: int | None) -> Image.Image:
    """A PIL image as it stands, or an array."""
    from PIL import Image

    if isinstance(source, Image.Image):
        if page is not None:
            raise InputError("a PIL image stands on one of its frames; image.seek chooses another, not page")
        image, name = source, "the picture"
    else:
        image, name = from_array(source)
        if page not in (None, 1):
            raise no_such_page(name, page or 0, 1, "pages")
    check_size(image.size, name, max_pixels)
    stored = image.format is not None
    try:
        image.load()
    except Exception as error:
        raise InputError(f"{name} is truncated or damaged: {reason(error)}") from None
    check_size(image.size, name, max_pixels)
    white = image.info.get("transparency") if stored and image.mode.startswith("I;16") else None
    levels = 65535 if image.format in ("PNG", "PPM", "JPEG2000") else 0 if image.mode == "I" else 65535
    trusted = image.format not in ("BMP", "DIB", "ICO")
    rgb = _rgb(image, name, white, levels=levels, trusted_alpha=trusted, derived=not stored)
    return turned(rgb, _stored_orientation(image)) if stored else rgb


def _stored_orientation(image: Image.Image) -> int:
    try:
        with quiet():
            return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels
        return 1


def _warn(text: str, level: int) -> None:
    warnings.warn(" ".join(text.split()), PictureWarning, stacklevel=level)
