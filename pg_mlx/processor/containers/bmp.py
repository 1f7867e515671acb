"""BMP: its size, and whether it is packed in the way that Pillow unpacks slowly."""

from __future__ import annotations

import struct

from .content import Content, Costly, Damaged

_FILE_HEADER = 14
_RUN_LENGTHS = (1, 2)
_MAX_RUN_LENGTH_PIXELS = 1 << 24
_MAX_RUN_LENGTH_BYTES = 1 << 24
"""Run lengths are unpacked in Python, some millions a second."""


def trim(data: bytes, page: int) -> Content:
    """The whole file: nothing in it can grow. Raises Damaged and Costly."""
    width, height, _ = check(memoryview(data)[_FILE_HEADER:])
    return Content("BMP", data, (width, height), trusted_alpha=False)


def check(bitmap: bytes | memoryview) -> tuple[int, int, int]:
    """Width, height and bits of a bitmap that begins with its own header. Raises Damaged and Costly."""
    try:
        length = struct.unpack_from("<I", bitmap)[0]
        if length == 12:
            width, height, _, bits = struct.unpack_from("<HHHH", bitmap, 4)
            return width, height, bits
        width, height, _, bits, packing = struct.unpack_from("<iiHHI", bitmap, 4)
    except struct.error:
        raise Damaged("its header is cut off") from None
    height = abs(height)
    if packing in _RUN_LENGTHS and (width * height > _MAX_RUN_LENGTH_PIXELS or len(bitmap) > _MAX_RUN_LENGTH_BYTES):
        raise Costly("run lengths over more than 16 million pixels; save it anew without them")
    return width, height, bits
