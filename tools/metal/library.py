"""A file of compiled Metal kernels (.metallib): which functions it has, and their LLVM bitcode.

Apple has not published the format. What is read here, little-endian: "MTLB"; at byte 24 four pairs of offset and size
(function list, two kinds of metadata, bitcode), each a u64; in the function list a u32 count, then for each function a
u32 size and tags (4 letters, u16 length, contents) up to "ENDT". NAME ends in a zero byte, OFFT has three u64 of which
the last is the offset in the bitcode, MDSZ is the bitcode's size.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

BITCODE = (b"BC\xc0\xde", b"\xde\xc0\x17\x0b")


class BadLibrary(Exception):
    """The file is not a metallib, or ends early."""


class Library(Mapping[str, bytes]):
    """The functions of a metallib by name; a value is the function's bitcode. Raises BadLibrary when it is made."""

    def __init__(self, path: Path):
        if path.stat().st_size < 4:
            raise BadLibrary(f"{path} is too short")
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._data[:4] != b"MTLB":
            raise BadLibrary(f"{path} does not begin with MTLB")
        self._functions = dict(self._read_functions())

    def __getitem__(self, name: str) -> bytes:
        start, size = self._functions[name]
        code = self._data[start : start + size]
        if not code.startswith(BITCODE):
            raise BadLibrary(f"the function {name} is not bitcode")
        return code

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __len__(self) -> int:
        return len(self._functions)

    def _unpack(self, layout: str, offset: int, stop: int) -> tuple[int, ...]:
        if not 0 <= offset <= stop - struct.calcsize(layout) <= len(self._data) - struct.calcsize(layout):
            raise BadLibrary(f"the metallib ends early, at byte {offset}")
        return struct.unpack_from(layout, self._data, offset)

    def _read_functions(self) -> Iterator[tuple[str, tuple[int, int]]]:
        end = len(self._data)
        listed, size, *_, code, code_size = self._unpack("<8Q", 24, end)
        stop = listed + size + 4  # the count is not part of the size
        if stop > end or code + code_size > end:
            raise BadLibrary("the metallib's header points outside of the file")
        (count,) = self._unpack("<I", listed, stop)
        at = listed + 4
        for _ in range(count):
            (size,) = self._unpack("<I", at, stop)
            tags = self._read_tags(at + 4, at + size)
            at += size
            try:
                name = tags[b"NAME"].rstrip(b"\0").decode()
                start = code + struct.unpack("<3Q", tags[b"OFFT"])[2]
                (length,) = struct.unpack("<Q", tags[b"MDSZ"])
            except (KeyError, struct.error, UnicodeDecodeError) as error:
                raise BadLibrary(f"a function of the metallib cannot be read: {error!r}") from None
            if not code <= start <= start + length <= code + code_size:
                raise BadLibrary(f"the bitcode of {name} is outside of the file")
            yield name, (start, length)

    def _read_tags(self, at: int, stop: int) -> dict[bytes, bytes]:
        tags: dict[bytes, bytes] = {}
        while True:
            (word,) = self._unpack("<I", at, stop)
            tag = struct.pack("<I", word)
            if tag == b"ENDT":
                return tags
            (length,) = self._unpack("<H", at + 4, stop)
            if at + 6 + length > stop:
                raise BadLibrary("a tag of the metallib is longer than its function")
            tags[tag] = self._data[at + 6 : at + 6 + length]
            at += 6 + length
