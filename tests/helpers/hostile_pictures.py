"""Pictures made by hand, sound and hostile: headers that lie, parts that inflate, wrappers around other formats."""

from __future__ import annotations

import struct
import zlib

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n1 0 0 setrgbcolor showpage\n%%EOF\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    """One part of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, pixels: bytes = b"", bits: int = 8, colour: int = 0, extra: bytes = b"", end: bytes = b""
) -> bytes:
    """A PNG of these rows, each with its filter in front; without rows one that claims a size and holds nothing."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = extra + chunk(b"IDAT", zlib.compress(pixels or b"\0" * 99)) + (end or chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body


def before_pixels(data: bytes, extra: bytes) -> bytes:
    """A PNG with parts put behind its header."""
    return data[:33] + extra + data[33:]


def tiff(values: dict[int, tuple[int, int, int]], data: bytes = b"", order: str = "<", next_page: int = 0) -> bytes:
    """A TIFF of one row of tags, each (type, count, value), and the bytes behind them; -1 is where those begin."""
    begin = 8 + 2 + 12 * len(values) + 4
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(values))
    for number, (kind, count, value) in sorted(values.items()):
        value = begin if value == -1 else value
        short = kind == 3 and count == 1
        out += struct.pack(order + "HHI", number, kind, count)
        out += struct.pack(order + "H2x", value) if short else struct.pack(order + "I", value)
    return out + struct.pack(order + "I", next_page) + data


def grey_tiff(
    bits: int, data: bytes, width: int, white_is_zero: bool = False, order: str = "<", kind: int = 1
) -> bytes:
    """One line of grey. kind: 1 for whole numbers, 2 for signed ones, 3 for floats."""
    tags = {256: (4, 1, width), 257: (4, 1, 1), 258: (3, 1, bits), 259: (3, 1, 1), 262: (3, 1, 1 - white_is_zero)}
    tags |= {273: (4, 1, -1), 277: (3, 1, 1), 278: (4, 1, 1), 279: (4, 1, len(data)), 339: (3, 1, kind)}
    return tiff(tags, data, order)


def segment(mark: int, data: bytes) -> bytes:
    """One part of a JPEG."""
    return bytes((0xFF, mark)) + struct.pack(">H", len(data) + 2) + data


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG; each scan takes about seventy bytes and walks over the whole picture."""

    def packed(text: str) -> bytes:
        text += "1" * (-len(text) % 8)
        data = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
        return data.replace(b"\xff", b"\xff\0")

    blocks = (-(-side // 8)) ** 2
    out = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    out += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    out += segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0")
    out += segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")
    out += segment(0xDA, b"\1\1\0\0\0\0") + packed("0" * blocks)
    runs, left = "", blocks
    while left > 0:
        run = min(left, 32767)
        runs += "0" + format(max(run, 16384) - 16384, "014b")
        left -= max(run, 16384)
    return out + (segment(0xDA, b"\1\1\0\1\x3f\0") + packed(runs)) * scans + b"\xff\xd9"


def icon(data: bytes, side: int = 64) -> bytes:
    """An ICO whose one entry says that it is small."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, side, side, 0, 0, 1, 32, len(data), 22) + data


def iptc(inner: bytes, layers: int = 1, band: int | None = None) -> bytes:
    """A picture in IPTC's wrapper, which Pillow hands to any of its readers."""

    def field(a: int, b: int, data: bytes) -> bytes:
        return bytes((0x1C, a, b)) + struct.pack(">H", len(data)) + data

    head = field(3, 60, bytes((layers, 0 if band is None else 1))) + field(3, 20, b"\0\x40") + field(3, 30, b"\0\x40")
    head += field(3, 120, b"\5") + (b"" if band is None else field(3, 65, bytes((band + 1,))))
    return head + b"".join(field(8, 10, inner[i : i + 30000]) for i in range(0, len(inner), 30000)) + b"\0" * 5


def icns(data: bytes) -> bytes:
    """A Mac's icon file around other data."""
    return b"icns" + struct.pack(">I", 16 + len(data)) + b"ic07" + struct.pack(">I", 8 + len(data)) + data


def bitmap(width: int, height: int, bits: int, packing: int, body: bytes, colours: int = 0) -> bytes:
    """A BMP with a header of 40 bytes."""
    begin = 54 + 4 * colours
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, len(body), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", begin + len(body), 0, 0, begin) + head + b"\0" * 4 * colours + body
