"""Bytes to a decoded picture: one reader, and sizes that are known before and checked after."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import threading
import warnings
from typing import TYPE_CHECKING

from ..errors import InputError, TooLarge
from . import containers
from .containers import Content, Costly, Damaged, RawFile
from .formats import format_of, raw_picture, refuse_raw_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

_READERS = {
    "TIFF": "PIL.TiffImagePlugin",
    "WEBP": "PIL.WebPImagePlugin",
    "AVIF": "PIL.AvifImagePlugin",
    "ICO": "PIL.IcoImagePlugin",
    "JPEG2000": "PIL.Jpeg2KImagePlugin",
}
"""Those that Pillow imports with all its others only, which takes longer than to read a picture."""
_MAX_FRAME_PIXELS = 1 << 32
"""Frames before the one that is asked for, times their pixels."""
_HALF = 2
_JPEG_END = b"\xff\xd9"
_QUIET = threading.Lock()
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"} | {
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def read_content(data: bytes, name: str, page: int) -> Content:
    """The page or frame, from 1, of bytes of any format that is read. Raises InputError."""
    kind = format_of(data, name)
    refuse_raw_name(name, kind)
    try:
        content = containers.trim(data, kind, page)
    except Damaged as damaged:
        raise InputError(f"{name} is damaged: {damaged}") from None
    except Costly as costly:
        raise TooLarge(f"{name} has {costly}") from None
    except RawFile:
        raise raw_picture(name) from None
    if page > content.pages and kind not in ("AVIF", "HEIF"):
        raise no_such_page(name, page, content.pages, content.unit)
    return content


def no_such_page(name: str, page: int, pages: int, unit: str) -> InputError:
    """The error for a page or frame that a file does not have."""
    return InputError(f"{name} has {pages} {unit if pages != 1 else unit[:-1]}, so there is no {unit[:-1]} {page}")


def decode(content: Content, name: str, max_pixels: int) -> Image.Image:
    """The loaded picture as it is stored: not turned, of any mode. A JPEG of up to four times max_pixels is decoded at
    half its size. Raises InputError, and TooLarge for more pixels."""
    size = content.size
    half = is_halved(content, max_pixels)
    if size is not None:
        check_size((size[0] // _HALF, size[1] // _HALF) if half else size, name, max_pixels, size)
    if content.make is not None:
        try:
            return content.make()
        except Damaged as damaged:
            raise InputError(f"{name} is damaged: {damaged}") from None
    image = _open(content, content.data, name)
    if half:
        image.draft(None, (image.width // _HALF, image.height // _HALF))
    check_size(image.size, name, max_pixels)
    if content.frame is not None:
        seek(image, content.frame, name, content.unit)
    try:
        image.load()
    except Exception as error:
        whole = _without_end_mark(content, image.size if half else None, name) if content.format == "JPEG" else None
        if whole is None:
            raise InputError(f"{name} is truncated or damaged: {reason(error)}") from None
        image = whole
    check_size(image.size, name, max_pixels)
    return image


def is_halved(content: Content, max_pixels: int) -> bool:
    """Whether it is decoded at half its size, since it has more than max_pixels and up to four times as many."""
    if content.size is None or not content.halves:
        return False
    return max_pixels < content.size[0] * content.size[1] <= _HALF**2 * max_pixels


def seek(image: Image.Image, frame: int, name: str, unit: str) -> None:
    """Go to a frame, from 0. Raises InputError if there is none, TooLarge if too much lies before it."""
    frames = getattr(image, "n_frames", 1)
    if frame >= frames:
        raise no_such_page(name, frame + 1, frames, unit)
    if frame * image.width * image.height > _MAX_FRAME_PIXELS:
        raise TooLarge(f"{name} has too many {unit} before number {frame + 1} to go through them")
    try:
        image.seek(frame)
    except Exception as error:
        raise InputError(f"{name} is truncated or damaged: {reason(error)}") from None


def check_size(size: tuple[int, int], name: str, max_pixels: int, said: tuple[int, int] | None = None) -> None:
    """Raises InputError for no pixels, TooLarge for too many. said: the size to be named instead."""
    width, height = size
    if width < 1 or height < 1:
        raise InputError(f"{name} has no pixels ({width} x {height})")
    if width * height > max_pixels:
        width, height = said or size
        raise TooLarge(f"{name} has {width} x {height} pixels; the limit is {max_pixels}, so make it smaller first")


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The picture upright. orientation: EXIF's number, 1 to 8."""
    from PIL import Image

    return image.transpose(getattr(Image.Transpose, _TURNS[orientation])) if orientation in _TURNS else image


def reason(error: Exception) -> str:
    """What an error says, in one bounded line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings about side data. One thread at a time, since the filters are the whole process's."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(content: Content, data: bytes, name: str) -> Image.Image:
    """The header, by the one reader of its format."""
    from PIL import Image

    kind = content.format
    if kind in _READERS:
        importlib.import_module(_READERS[kind])
    if kind == "HEIF":
        _enable_heic(name)
    try:
        with quiet():
            if kind == "JPEG":  # its size was checked, and may be above the limit of Image.open
                from PIL.JpegImagePlugin import JpegImageFile

                return JpegImageFile(io.BytesIO(data))
            return Image.open(io.BytesIO(data), formats=[kind])
    except Image.DecompressionBombError:
        raise TooLarge(
            f"{name} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels; make it smaller first"
        ) from None
    except Image.UnidentifiedImageError:
        raise InputError(f"{name} is a damaged {kind}, or of a kind of {kind} that Pillow does not read") from None
    except Exception as error:  # Pillow's readers raise whatever their parsers stumble over
        raise InputError(f"{name} is damaged: {reason(error)}") from None


def _without_end_mark(content: Content, half: tuple[int, int] | None, name: str) -> Image.Image | None:
    """A JPEG that lacks only its end mark; None if it lacks pixels too.

    Different ends are tried. If the pixels come out the same, none of them depended on what is missing.
    """
    data = content.data.rstrip(b"\xff")
    if data.endswith(_JPEG_END):
        return None
    first = None
    for filler in (b"", b"\x55" * 1024, b"\xaa" * 1024):
        image = _open(content, b"".join((data, filler, _JPEG_END)), name)
        if half:
            image.draft(None, half)
        try:
            image.load()
        except Exception:  # whatever it is: pixels are lacking too, and the caller refuses the picture as damaged
            return None
        first = first or image
        if not _same_pixels(first, image):
            return None
    return first


def _same_pixels(one: Image.Image, other: Image.Image) -> bool:
    strips = ((0, top, one.width, min(top + 256, one.height)) for top in range(0, one.height, 256))
    return all(one.crop(strip).tobytes() == other.crop(strip).tobytes() for strip in strips)


def _enable_heic(name: str) -> None:
    if importlib.util.find_spec("pillow_heif") is None:
        raise InputError(f"{name} is a HEIC picture; to read those, `pip install pillow-heif`, or save it as JPEG")
    import pillow_heif

    pillow_heif.register_heif_opener()
