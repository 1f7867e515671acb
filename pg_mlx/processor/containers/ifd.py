"""Tags of TIFF, which EXIF and MPF are written in too: read by hand, bounded, without warnings."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from .content import Costly, Damaged

ORIENTATION = 0x0112
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
_XMP_BYTES = 4 << 20
_MAX_TAGS = 1 << 18
"""In all directories of a file: ten thousand pages have fewer, and directories may lie over each other."""


class Tag(NamedTuple):
    """One entry: the type and number of its values, where they lie in the file, and the entry as it is written."""

    type: int
    number: int
    offset: int
    entry: bytes

    @property
    def size(self) -> int:
        """How many bytes its values take."""
        return self.number * _TYPE_BYTES.get(self.type, 1)


class Tiff:
    """The header of a TIFF, classic or big, and its directories. Raises Damaged for what is none.

    start: where in data it begins; offsets in it count from there.
    """

    def __init__(self, data: bytes, start: int = 0) -> None:
        """Reads the header only."""
        self.data, self.start, self._tags_left = data, start, _MAX_TAGS
        head = data[start : start + 16]
        if head[:2] not in (b"II", b"MM"):
            raise Damaged("its tags have no byte order")
        self.order = "<" if head[:2] == b"II" else ">"
        self.big = head[2:4] in (b"+\0", b"\0+")
        self.first = self._number("Q" if self.big else "I", start + (8 if self.big else 4))

    def _number(self, kind: str, at: int) -> int:
        try:
            return int(struct.unpack_from(self.order + kind, self.data, at)[0])
        except (struct.error, OverflowError):
            raise Damaged("its tags lie behind its end") from None

    def directory(self, offset: int) -> tuple[dict[int, Tag], int]:
        """The tags of the directory at an offset, and the offset of the next one (0 if there is none).

        Raises Damaged for one that is not there, Costly if the file has had too many.
        """
        at = self.start + offset
        count, at = (self._number("Q", at), at + 8) if self.big else (self._number("H", at), at + 2)
        length = 20 if self.big else 12
        if offset <= 0 or count > 65535 or at + count * length > len(self.data):
            raise Damaged("its tags lie behind its end")
        self._tags_left -= count
        if self._tags_left < 0:
            raise Costly(f"more than {_MAX_TAGS} tags; save it anew")
        tags: dict[int, Tag] = {}
        inline = 8 if self.big else 4
        for place in range(at, at + count * length, length):
            entry = self.data[place : place + length]
            number, kind, values = struct.unpack_from(self.order + ("HHQ" if self.big else "HHI"), entry)
            where = place + length - inline
            if values * _TYPE_BYTES.get(kind, 1) > inline:
                where = self.start + self._number("Q" if self.big else "I", where)
            tags.setdefault(number, Tag(kind, values, where, entry))
        end = at + count * length
        try:
            return tags, self._number("Q" if self.big else "I", end)
        except Damaged:  # many writers leave it out where the file ends
            return tags, 0

    def numbers(self, tag: Tag | None, most: int) -> tuple[int, ...]:
        """The whole numbers of a tag; none for one that is missing. Raises Damaged for more than `most` of them."""
        if tag is None or tag.type not in _NUMBERS:
            return ()
        if tag.number > most:
            raise Damaged(f"a tag has {tag.number} values")
        try:
            return struct.unpack_from(f"{self.order}{tag.number}{_NUMBERS[tag.type]}", self.data, tag.offset)
        except struct.error:
            raise Damaged("its tags lie behind its end") from None

    def number(self, tag: Tag | None, default: int) -> int:
        """The first number of a tag, or the default for one that is missing."""
        values = self.numbers(tag, 1 << 16)
        return values[0] if values else default


def orientation_of(exif: bytes, xmp: bytes = b"") -> int:
    """EXIF's number from 1 to 8: from EXIF with or without its name, else from XMP, else 1. Never raises."""
    try:
        exif = exif.removeprefix(b"Exif\0\0")
        tiff = Tiff(exif)
        tags, _ = tiff.directory(tiff.first)
        found = tiff.number(tags.get(ORIENTATION), 0)
        if 1 <= found <= 8:
            return found
        if ORIENTATION in tags:
            return 1
    except Damaged:
        pass
    match = _XMP_ORIENTATION.search(xmp[:_XMP_BYTES])
    return int(match[1]) if match else 1
