"""ICO: its largest icon alone, as the PNG it is or as an icon file with nothing else in it."""

from __future__ import annotations

import dataclasses
import struct

from . import bmp, png
from .content import Content, Damaged

_DIB_BITS = (1, 4, 8, 16, 24, 32)


def trim(data: bytes, page: int) -> Content:
    """The icon of the most pixels and bits; the others are the same picture, smaller. Raises Damaged and Costly."""
    count = int.from_bytes(data[4:6], "little")
    entries = [data[at : at + 16] for at in range(6, 6 + 16 * count, 16) if at + 16 <= len(data)]
    if not entries:
        raise Damaged("it holds no icon")
    entry = max(entries, key=lambda e: ((e[0] or 256) * (e[1] or 256), int.from_bytes(e[6:8], "little")))
    length, offset = struct.unpack_from("<II", entry, 8)
    icon = data[offset : offset + length]
    if icon.startswith(png.SIGNATURE):
        return dataclasses.replace(png.trim(icon, 1), pages=1)
    width, height, bits = bmp.check(icon)
    if bits not in _DIB_BITS:
        raise Damaged("its icon has no known depth")
    height //= 2  # above the mask of what is to be seen
    alone = data[:4] + b"\1\0" + entry[:8] + struct.pack("<II", len(icon), 22) + icon
    return Content("ICO", alone, (width, height), trusted_alpha=False)
