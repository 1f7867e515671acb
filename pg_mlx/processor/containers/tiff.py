"""TIFF: one page, as a file with a new directory behind the old bytes that holds only the tags of its pixels."""

from __future__ import annotations

import struct

from .content import Content, Costly, Damaged, RawFile
from .ifd import ORIENTATION, Tag, Tiff, orientation_of
from .jpeg import check_scans, scans_within

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_SUBFILE, _SUB_IFDS, _XMP, _DNG, _SAMPLE_FORMAT = 254, 330, 700, 50706, 339
_NEEDED = frozenset(
    (_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320)
) | {322, 323, 324, 325, 332, 334, 338, _SAMPLE_FORMAT, 347, 50674, *range(512, 522), *range(529, 533)}
_REDUCED = 0b101
"""NewSubfileType: a smaller copy, or a mask."""
_RAW_COLOURS = frozenset((32803, 34892))
_RAW_COMPRESSIONS = frozenset((32767, 34713, 65535))
_JPEGS = frozenset((6, 7))
_OLD_JPEG = 513
_MAX_DIRECTORIES = 10_000
_MAX_STRIPS = 1 << 18
_SAMPLES, _MAX_SAMPLES = 277, 6
"""Pillow reads no more."""
_MIN_TILE_PIXELS = 1 << 22


def trim(data: bytes, page: int) -> Content:
    """The page, from 1; smaller copies of pages do not count. Raises Damaged, Costly, and RawFile for a camera's."""
    file = Tiff(data)
    directories = _directories(file)
    whole = [tags for tags in directories if not file.number(tags.get(_SUBFILE), 0) & _REDUCED]
    _refuse_raw(file, directories, bool(whole))
    whole = whole or directories[:1]
    if page > len(whole):
        return Content("TIFF", b"", pages=len(whole))
    tags = whole[page - 1]
    size = file.number(tags.get(_WIDTH), 0), file.number(tags.get(_HEIGHT), 0)
    _check_parts(file, tags, size)
    inverted, levels = _grey_levels(file, tags)
    return Content(
        "TIFF",
        _with_directory(file, {number: tag for number, tag in tags.items() if number in _NEEDED}, inverted),
        size,
        _orientation(file, tags),
        pages=len(whole),
        inverted=inverted,
        levels=levels,
    )


def _directories(file: Tiff) -> list[dict[int, Tag]]:
    """The chain of directories, each once."""
    found, seen, offset = list[dict[int, Tag]](), set[int](), file.first
    while offset and offset not in seen:
        if len(seen) >= _MAX_DIRECTORIES:
            raise Costly(f"more than {_MAX_DIRECTORIES} pages")
        seen.add(offset)
        try:
            tags, offset = file.directory(offset)
        except Damaged:
            if not found:
                raise
            break  # the pages before it are sound
        found.append(tags)
    if not found:
        raise Damaged("it has no page")
    return found


def _refuse_raw(file: Tiff, directories: list[dict[int, Tag]], has_whole: bool) -> None:
    below = [offset for tags in directories[:16] for offset in file.numbers(tags.get(_SUB_IFDS), _MAX_DIRECTORIES)[:16]]
    everything = list(directories)
    for offset in below:
        try:
            everything.append(file.directory(offset)[0])
        except Damaged:
            continue
    for tags in everything:
        if (
            _DNG in tags
            or file.number(tags.get(_PHOTOMETRIC), 0) in _RAW_COLOURS
            or file.number(tags.get(_COMPRESSION), 1) in _RAW_COMPRESSIONS
        ):
            raise RawFile
    if (below and not has_whole) or file.data[8:10] == b"CR":  # a thumbnail, and the picture where we do not look
        raise RawFile


def _check_parts(file: Tiff, tags: dict[int, Tag], size: tuple[int, int]) -> None:
    """Strips and tiles are few enough, and JPEGs in them have no more scans than others. Raises Damaged and Costly."""
    samples = file.number(tags.get(_SAMPLES), 1)
    if samples > _MAX_SAMPLES:
        raise Damaged(f"it has {samples} values for each pixel")
    needed = sum(tag.size for number, tag in tags.items() if number in _NEEDED)
    if needed > len(file.data) + (1 << 16):
        raise Damaged("its tags are larger than the file")
    offsets = file.numbers(tags.get(273) or tags.get(324), _MAX_STRIPS)
    tile = file.number(tags.get(322), size[0]), file.number(tags.get(323), file.number(tags.get(278), size[1]))
    if 322 in tags and tile[0] * tile[1] > 4 * max(size[0] * size[1], _MIN_TILE_PIXELS):
        raise Costly(f"tiles of {tile[0]} x {tile[1]} pixels for {size[0]} x {size[1]}; save it anew")
    if file.number(tags.get(_COMPRESSION), 1) not in _JPEGS:
        return
    lengths = file.numbers(tags.get(279) or tags.get(325), _MAX_STRIPS)
    pixels = min(tile[0], size[0]) * min(tile[1], size[1])
    walked = sum(
        scans_within(file.data, offset, offset + length) for offset, length in zip(offsets, lengths, strict=False)
    )
    if _OLD_JPEG in tags:  # its bytes may lie anywhere
        walked += scans_within(file.data, 0, len(file.data))
        pixels = size[0] * size[1]
    check_scans(walked / max(1, len(offsets)), pixels * max(1, len(offsets)))


def _grey_levels(file: Tiff, tags: dict[int, Tag]) -> tuple[bool, int]:
    """Whether 0 is white in a way that Pillow overlooks, and the largest value of grey with more than 8 bits."""
    bits = file.numbers(tags.get(_BITS), 1 << 16) or (1,)
    signed = file.number(tags.get(_SAMPLE_FORMAT), 1) == 2
    if len(bits) != 1 or bits[0] <= 8:
        return False, 65535
    white_is_zero = file.number(tags.get(_PHOTOMETRIC), 1) == 0
    levels = {12: 4095, 32: 0}.get(bits[0], 65535)
    return white_is_zero and not signed, levels


def _orientation(file: Tiff, tags: dict[int, Tag]) -> int:
    if ORIENTATION in tags:
        found = file.number(tags[ORIENTATION], 1)
        return found if 1 <= found <= 8 else 1
    xmp = tags.get(_XMP)
    return orientation_of(b"", file.data[xmp.offset : xmp.offset + min(xmp.size, 1 << 22)] if xmp else b"")


def _with_directory(file: Tiff, tags: dict[int, Tag], inverted: bool) -> bytes:
    """The file with another first directory. inverted: it says that 0 is black, which Pillow reads in every depth."""
    order, data = file.order, file.data
    entries = {number: tag.entry for number, tag in tags.items()}
    if inverted:
        entries[_PHOTOMETRIC] = struct.pack(order + ("HHQH6x" if file.big else "HHIH2x"), _PHOTOMETRIC, 3, 1, 1)
    gap = b"\0" * (-len(data) % 8)
    begin = len(data) + len(gap)
    head = data[:8] + struct.pack(order + "Q", begin) if file.big else data[:4] + struct.pack(order + "I", begin)
    count = struct.pack(order + ("Q" if file.big else "H"), len(entries))
    end = b"\0" * (8 if file.big else 4)
    rows = b"".join(entries[number] for number in sorted(entries))
    return b"".join((head, memoryview(data)[len(head) :], gap, count, rows, end))
