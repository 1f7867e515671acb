"""WEBP, JPEG 2000, AVIF and HEIF: their size where the header says it, and what in them must not reach a reader."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from .content import Content, Costly, Damaged

_MAX_BOXES = 4096
_EXIF_ITEM = re.compile(rb"(infe\x02.{7}|infe\x03.{9})Exif", re.DOTALL)
_MAX_PACKETS = 1 << 24


def trim_webp(data: bytes, page: int) -> Content:
    """The whole file, and how many frames it has. Raises Damaged and Costly."""
    at, size, frames, chunks = 12, None, 0, 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 18]
        if kind == b"VP8X" and size is None and len(body) == 10:
            size = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        elif kind == b"VP8L" and size is None and len(body) >= 5:
            bits = int.from_bytes(body[1:5], "little")
            size = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"VP8 " and size is None and len(body) == 10:
            width, height = struct.unpack_from("<HH", body, 6)
            size = width & 0x3FFF, height & 0x3FFF
        frames += kind == b"ANMF"
        chunks += 1
        if chunks > 100_000:
            raise Costly("more than 100000 parts; save it anew")
        at += 8 + length + length % 2
    if size is None:
        raise Damaged("its header is cut off")
    return Content("WEBP", data, size, pages=max(1, frames), unit="frames", frame=page - 1 if page > 1 else None)


def trim_jpeg2000(data: bytes, page: int) -> Content:
    """Header and codestream. Raises Damaged and Costly."""
    if data.startswith(b"\xff\x4f"):
        return Content("JPEG2000", data, _check_codestream(data, 0))
    header, stream = b"", None
    for kind, begin, body, end in _boxes(data):
        if kind == b"jp2h":
            header = header or data[begin:end]
        elif kind == b"jp2c":
            stream = body, end
            break
    if not header or stream is None:
        raise Damaged("it has no picture")
    sum(1 for _ in _boxes(header[8:]))  # bounded
    size = _check_codestream(data, stream[0])
    codes = memoryview(data)[stream[0] : stream[1]]
    signature = b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 "
    return Content(
        "JPEG2000", b"".join((signature, header, struct.pack(">I4s", len(codes) + 8, b"jp2c"), codes)), size
    )  # fmt: skip


def trim_bmff(kind: str, data: bytes, page: int) -> Content:
    """AVIF or HEIF without EXIF, which says nothing there: the container itself tells how the picture is turned."""
    for name, begin, _, end in _boxes(data):
        if name == b"meta":
            meta = _EXIF_ITEM.sub(rb"\1Exi_", data[begin:end])
            data = b"".join((data[:begin], meta, memoryview(data)[end:]))
            break
    return Content(kind, data, unit="frames", frame=page - 1 if page > 1 else None)


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int, int]]:
    """Name, begin, begin of the contents and end of each box. Raises Costly."""
    at, count = 0, 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if length == 1 and at + 16 <= len(data):
            length, body = struct.unpack_from(">Q", data, body)[0], at + 16
        end = min(at + length, len(data)) if length else len(data)
        if end < body:
            return
        yield kind, at, body, end
        at, count = end, count + 1
        if count > _MAX_BOXES:
            raise Costly(f"more than {_MAX_BOXES} parts; save it anew")


def _check_codestream(data: bytes, begin: int) -> tuple[int, int]:
    """The size of a JPEG 2000 codestream, whose marks, tiles and packets are counted. Raises Damaged and Costly."""
    at, size, tiles, components, packets, marks = begin + 2, None, 1, 1, 1, 0
    try:
        while True:
            mark, length = struct.unpack_from(">HH", data, at)
            if mark == 0xFF51:
                right, low, left, top, tile_w, tile_h, tile_x, tile_y, components = struct.unpack_from(
                    ">8IH", data, at + 6
                )
                if not tile_w or not tile_h:
                    raise Damaged("its tiles have no size")
                size = right - left, low - top
                tiles = -(-(right - tile_x) // tile_w) * -(-(low - tile_y) // tile_h)
            elif mark == 0xFF52:
                layers, levels = struct.unpack_from(">HxB", data, at + 6)
                packets = layers * (levels + 1)
            elif mark in (0xFF90, 0xFFD9):
                break
            marks += 1
            if marks > _MAX_BOXES or length < 2:
                raise Costly(f"more than {_MAX_BOXES} parts; save it anew")
            at += 2 + length
    except struct.error:
        raise Damaged("its header is cut off") from None
    if size is None or min(size) < 1:
        raise Damaged("it has no size")
    if tiles * components * packets > _MAX_PACKETS:
        raise Costly(f"{tiles * components * packets} packets; save it anew")
    return size
