"""PNG: the chunks that make pixels. Text, profiles and times are left out, since they inflate a thousandfold."""

from __future__ import annotations

import binascii
import struct
import zlib

from .content import Content, Costly, Damaged
from .ifd import orientation_of

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"
_NEEDED = frozenset((b"IHDR", b"PLTE", b"tRNS", b"IDAT"))
_ANIMATED = frozenset((b"acTL", b"fcTL", b"fdAT"))
_MAX_CHUNKS = 200_000
_TEXT_BYTES = 4 << 20
_MAX_TEXTS = 8
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt"))
_XMP = b"XML:com.adobe.xmp"
_METADATA = frozenset((_XMP, b"Raw profile type exif", b"Raw profile type APP1", b"exif"))


def trim(data: bytes, page: int) -> Content:
    """The PNG, its first picture or the frame `page` of an animation, from 1. Raises Damaged and Costly."""
    view, at, end = memoryview(data), len(SIGNATURE), len(data)
    kept: list[memoryview | bytes] = [SIGNATURE]
    head, white, exif, xmp, frames, chunks, texts = b"", b"", b"", b"", 1, 0, 0
    wanted = _NEEDED | _ANIMATED if page > 1 else _NEEDED
    while at + 8 <= end:
        chunks += 1
        if chunks > _MAX_CHUNKS:
            raise Costly(f"more than {_MAX_CHUNKS} parts; save it anew")
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            break
        stop = min(at + 12 + length, end)
        body = view[at + 8 : min(at + 8 + length, end)]
        if kind == b"IHDR" and not head:
            head = bytes(body)
        elif kind == b"tRNS" and not white:
            white = bytes(body[:256])
        elif kind == b"acTL" and length >= 4:
            frames = max(1, struct.unpack_from(">I", data, at + 8)[0])
        elif kind == b"eXIf":
            exif = exif or bytes(body)
        elif kind in _TEXTS and bytes(body[:80]).partition(b"\0")[0] in _METADATA and texts < _MAX_TEXTS:
            texts += 1
            exif, xmp = _text(kind, body, exif, xmp)
        if kind in wanted and not (kind == b"tRNS" and _is_ours(head)) and not (kind == b"IHDR" and len(kept) > 1):
            kept.append(view[at:stop])
        at = stop
    if len(head) != 13:
        raise Damaged("it has no PNG header")
    width, height, depth, colour = struct.unpack_from(">IIBB", head)
    kept.append(_END)
    return Content(
        "PNG",
        b"".join(kept),
        (width, height),
        orientation_of(exif, xmp),
        pages=frames,
        unit="frames",
        frame=page - 1 if page > 1 else None,
        white=_white(white, depth, colour),
    )


def _is_ours(head: bytes) -> bool:
    """Whether `_white` says what is transparent: Pillow compares the levels of grey and of 16 bits with others."""
    return head[9:10] == b"\0" or head[8:10] == b"\x10\x02"


def _white(body: bytes, depth: int, colour: int) -> int | tuple[int, int, int] | None:
    """What is transparent, in the levels that Pillow gives: grey of any depth, or the upper half of 16-bit colours."""
    if colour == 0 and depth in (1, 2, 4, 8, 16) and len(body) >= 2:
        level = int.from_bytes(body[:2], "big") & ((1 << depth) - 1)
        return level if depth == 16 else level * 255 // ((1 << depth) - 1)
    if colour == 2 and depth == 16 and len(body) >= 6:
        return body[0], body[2], body[4]
    return None


def _text(kind: bytes, body: memoryview, exif: bytes, xmp: bytes) -> tuple[bytes, bytes]:
    """EXIF and XMP as some programs hide them in text, bounded; those that were found before stay."""
    key = bytes(body[:80]).partition(b"\0")[0]
    rest = bytes(body[len(key) + 1 :])
    packed = kind == b"zTXt"
    if kind == b"iTXt":
        packed = rest[:1] == b"\1"
        rest = rest[2:].split(b"\0", 2)[-1]
    elif packed:
        rest = rest[1:]
    try:
        value = zlib.decompressobj().decompress(rest, _TEXT_BYTES) if packed else rest[:_TEXT_BYTES]
        if key == _XMP:
            return exif, xmp or value
        if key != b"exif":  # ImageMagick's: a line break, a name, a length, and lines of hexadecimal digits
            value = binascii.unhexlify(b"".join(value.split(b"\n")[3:]))
        return exif or value, xmp
    except (zlib.error, binascii.Error):
        return exif, xmp
