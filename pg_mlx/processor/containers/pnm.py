"""PBM, PGM and PPM, plain and binary, of any depth; Pillow would read most of them a value at a time."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from .content import Content, Costly, Damaged

if TYPE_CHECKING:
    from PIL import Image

_HEAD = re.compile(rb"P([1-6fF])((?:[\s]|#[^\r\n]*[\r\n])+)")
_NUMBER = re.compile(rb"([+-]?[0-9.]{1,16})((?:[\s]|#[^\r\n]*[\r\n])*)")
_COMMENT = re.compile(rb"#[^\r\n]*")
_DIGITS = re.compile(rb"[\s0-9]*")
_HEAD_BYTES = 1 << 16
_MAX_COMMENTS = 10_000
_MAX_PLAIN_BYTES = 64 << 20


def trim(data: bytes, page: int) -> Content:
    """A map of bits, grey or colours. If a file has several, the first. Raises Damaged and Costly."""
    start = data[:_HEAD_BYTES]
    head = _HEAD.match(start)
    if not head:
        raise Damaged("its header is cut off")
    kind, at, numbers = head[1], head.end(), []
    for _ in range(2 if kind in b"14" else 3):
        match = _NUMBER.match(start, at)
        if not match:
            raise Damaged("its header is cut off, or holds more than 64 KiB of comments")
        numbers.append(match[1])
        at = match.end(1) if len(numbers) == 3 or (kind == b"4" and len(numbers) == 2) else match.end()
    try:
        width, height = int(numbers[0]), int(numbers[1])
        if kind in b"fF":
            return Content("PPM", data, (width, height))
        levels = int(numbers[2]) if len(numbers) == 3 else 1
    except ValueError:
        raise Damaged("its header holds no numbers") from None
    if not 0 < levels < 65536:
        raise Damaged(f"its largest level is {levels}")
    if kind in b"123" and len(data) > _MAX_PLAIN_BYTES:
        raise Costly("more than 64 MiB of text; save it as a binary map")
    if kind in b"123" and data.count(b"#") > _MAX_COMMENTS:
        raise Costly(f"more than {_MAX_COMMENTS} comments; save it anew")
    return Content("PPM", b"", (width, height), make=partial(_make, data, at, int(kind), width, height, levels))


def _make(data: bytes, at: int, kind: int, width: int, height: int, levels: int) -> Image.Image:
    """An 8-bit picture. Raises Damaged."""
    import numpy as np
    from PIL import Image

    channels = 3 if kind in (3, 6) else 1
    count = width * height * channels
    if kind == 1:
        digits = np.frombuffer(_COMMENT.sub(b"", data[at:]), np.uint8)
        values = digits[(digits == 48) | (digits == 49)] - 48
    elif kind in (2, 3):
        text = _COMMENT.sub(b" ", data[at:])
        if not _DIGITS.fullmatch(text):
            raise Damaged("it holds what is no number")
        values = np.fromstring(text, np.int64, sep=" ") if text.strip() else np.zeros(0, np.int64)
    elif kind == 4:
        row = -(-width // 8)
        packed = np.frombuffer(data, np.uint8, min(row * height, max(0, len(data) - at - 1)), at + 1)
        if packed.size < row * height:
            raise Damaged("it is truncated")
        values = np.unpackbits(packed.reshape(height, row), axis=1)[:, :width].reshape(-1)
    else:
        kept = np.dtype("u1" if levels < 256 else ">u2")
        values = np.frombuffer(data, kept, min(count, max(0, len(data) - at - 1) // kept.itemsize), at + 1)
    if values.size < count:
        raise Damaged("it is truncated")
    if kind in (1, 4):
        values = (1 - values[:count]) * np.uint8(255)
    elif levels != 255 or values.dtype != np.uint8:
        if kind in (2, 3) and (values.max(initial=0) > levels):
            raise Damaged(f"it holds a level beyond {levels}")
        values = np.minimum((values[:count].astype(np.uint32) * 255 + levels // 2) // levels, 255)
    shape = (height, width, 3) if channels == 3 else (height, width)
    return Image.fromarray(values[:count].astype(np.uint8, copy=False).reshape(shape))
