"""GIF: screen, palettes and frames, without comments and programs' own data."""

from __future__ import annotations

import struct

from .content import Content, Costly, Damaged

_MAX_BLOCKS = 4_000_000
_CONTROL = 0xF9


def trim(data: bytes, page: int) -> Content:
    """The GIF up to its frame `page`, from 1, and how many frames there are. Raises Damaged and Costly."""
    if len(data) < 13:
        raise Damaged("its header is cut off")
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _palette_bytes(flags)
    kept, frames, blocks = [data[:at]], 0, 0
    while at < len(data):
        kind = data[at]
        if kind == 0x21:
            head, control = 2, data[at + 1 : at + 2] == bytes((_CONTROL,))
        elif kind == 0x2C:
            if at + 10 > len(data):
                break
            left, top, wide, high, flags = struct.unpack_from("<HHHHB", data, at + 1)
            head, control = 11 + _palette_bytes(flags), False
            frames += 1
            if frames <= page:
                width, height = max(width, left + wide), max(height, top + high)
        else:
            break  # the trailer, or rubbish behind the last frame
        end = at + head
        while end < len(data) and (length := data[end]):
            end += 1 + length
            blocks += 1
            if blocks > _MAX_BLOCKS:
                raise Costly(f"more than {_MAX_BLOCKS} parts; save it anew")
        end += 1
        if frames + (kind == 0x21) <= page and (kind == 0x2C or control):
            kept.append(data[at:end])
        at = end
    if not frames:
        raise Damaged("it has no frame")
    return Content("GIF", b"".join([*kept, b";"]), (width, height), pages=frames, unit="frames", frame=page - 1)


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
