"""JPEG: tables, frame and scans, without what others wrote beside them; and the pictures of an MPO.

A scan of seventy bytes may walk over the whole picture, and thousands fit into a small file, so they are counted.
"""

from __future__ import annotations

import struct

from .content import Content, Costly, Damaged
from .ifd import Tiff, orientation_of

_SCAN = b"\xff\xda"
_MAX_SEGMENTS = 8192
_MAX_TABLE_BYTES = 1 << 18
_MAX_SCANS = 1000
_MAX_WALKED = 8 << 30
"""Pixels times scans: some seconds."""
_EXIF_BYTES = 4 << 20
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_GAIN_MAPS = (b"hdrgm:", b"hdrgainmap", b"GContainer", b"HDRGainMap")
"""Words of XMP. They say that what follows the picture is a map of its brightness or depth, not another picture."""


def trim(data: bytes, page: int) -> Content:
    """The JPEG, or the picture `page` of an MPO, from 1. Raises Damaged and Costly."""
    pictures = _pictures(data)
    if page > 1:
        if page > len(pictures):
            return Content("JPEG", b"", pages=len(pictures))
        begin, end = pictures[page - 1]
        whole = _trim(data[begin:end])
    else:
        whole = _trim(data[: pictures[0][1]] if len(pictures) > 1 else data)
    return Content(
        "JPEG", whole.data, whole.size, whole.orientation, pages=len(pictures), halves=whole.halves
    )  # fmt: skip


def check_scans(count: float, pixels: int) -> None:
    """Raises Costly if so many walks over so many pixels are more than any camera or encoder asks for."""
    if count > _MAX_SCANS or count * pixels > _MAX_WALKED:
        raise Costly(f"{count:g} scans over {pixels} pixels; save it anew as an ordinary JPEG")


def scans_within(data: bytes, begin: int, end: int) -> int:
    """How often the mark of a scan stands there, at least as often as there are scans."""
    return data.count(_SCAN, begin, end)


def _trim(data: bytes) -> Content:
    at, size, progressive, tables = 2, (0, 0), False, 0
    kept: list[bytes | memoryview] = [b"\xff\xd8"]
    exif, xmp = bytearray(), b""
    for _ in range(_MAX_SEGMENTS):
        at = data.find(b"\xff", at)
        while at >= 0 and data[at + 1 : at + 2] == b"\xff":  # fill bytes
            at += 1
            if data[at : at + 256] == b"\xff" * 256:
                at += 255
        if at < 0 or at + 4 > len(data):
            raise Damaged("it ends before its picture begins")
        mark = data[at + 1]
        if mark in (0x00, 0x01) or 0xD0 <= mark <= 0xD8:
            at += 2
            continue
        if mark == 0xD9:
            raise Damaged("it ends before its picture begins")
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if end > len(data) or end < at + 4:
            raise Damaged("it ends before its picture begins")
        body = data[at + 4 : min(end, at + 40)]
        if mark in _FRAMES:
            if len(body) < 6:
                raise Damaged("its header is cut off")
            height, width = struct.unpack_from(">HH", body, 1)
            size, progressive = (width, height), mark in _PROGRESSIVE
        if mark == 0xDA:
            scans = scans_within(data, at, len(data))
            check_scans(scans, size[0] * size[1])
            kept.append(memoryview(data)[at:])
            return Content("JPEG", b"".join(kept), size, orientation_of(bytes(exif), xmp), halves=not progressive)
        if mark == 0xE1 and body.startswith(b"Exif\0\0") and len(exif) < _EXIF_BYTES:
            exif += data[at + (10 if exif else 4) : end]
        elif mark == 0xE1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or data[at + 33 : end]
        elif _is_needed(mark, body):
            tables += end - at
            if tables > _MAX_TABLE_BYTES:
                raise Costly(f"more than {_MAX_TABLE_BYTES} bytes of tables; save it anew")
            kept.append(data[at:end])
        at = end
    raise Costly(f"more than {_MAX_SEGMENTS} parts before its picture; save it anew")


def _is_needed(mark: int, body: bytes) -> bool:
    if mark == 0xE0:
        return body.startswith(b"JFIF\0")
    if mark == 0xEE:
        return body.startswith(b"Adobe")
    return mark < 0xE0


def _pictures(data: bytes) -> list[tuple[int, int]]:
    """Begin and end of each picture in an MPO; the whole file where there is only one, or others only go with it."""
    whole = [(0, len(data))]
    at = data.find(b"MPF\0", 0, 1 << 20)
    if at < 0 or any(word in data[: 1 << 18] for word in _GAIN_MAPS):
        return whole
    try:
        tiff = Tiff(data, at + 4)
        tags, _ = tiff.directory(tiff.first)
        entries = tags[0xB002]
        if not 2 <= entries.size // 16 <= 1000:
            return whole
        found = []
        for place in range(entries.offset, entries.offset + entries.size, 16):
            _, length, offset = struct.unpack_from(tiff.order + "III", data, place)
            begin = at + 4 + offset if offset else 0
            if data[begin : begin + 3] != b"\xff\xd8\xff":
                return whole
            found.append((begin, min(begin + length, len(data))))
        return found
    except (Damaged, KeyError, struct.error):
        return whole
