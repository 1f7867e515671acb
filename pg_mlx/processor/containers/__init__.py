"""What of a file makes its pixels. Each format has a module with `trim(data, page) -> Content`.

The rest of a file, its side data, never reaches Pillow: it cannot end the reading of a sound picture, inflate, or keep
a reader busy. Headers are read here first, so that a picture's size is known before anything is decoded.
"""

from __future__ import annotations

from .content import Content, Costly, Damaged, RawFile

__all__ = ["Content", "Costly", "Damaged", "RawFile", "trim"]


def trim(data: bytes, kind: str, page: int) -> Content:
    """One page or frame of the bytes, from 1; of a page that is not there, a Content that says how many there are.

    kind: one of formats.FORMATS, as formats.format_of says. Raises Damaged, Costly, and RawFile for a camera's.
    """
    from . import bmp, gif, icon, jpeg, others, png, pnm, tiff

    if kind in ("AVIF", "HEIF"):
        return others.trim_bmff(kind, data, page)
    readers = {
        "PNG": png.trim,
        "JPEG": jpeg.trim,
        "GIF": gif.trim,
        "TIFF": tiff.trim,
        "BMP": bmp.trim,
        "ICO": icon.trim,
        "WEBP": others.trim_webp,
        "JPEG2000": others.trim_jpeg2000,
        "PPM": pnm.trim,
    }
    return readers[kind](data, page)
