"""What a Mach-O file says of itself: the oldest macOS it runs on, and the libraries it wants.

A reader of our own, since these few load commands are all we need and every machine has to have it, Linux too; macholib
reads (and rewrites) all of the format. Numbers are those of Apple's <mach-o/loader.h> and <mach-o/fat.h>.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC, FAT_MAGIC = 0xFEEDFACF, 0xCAFEBABE
ARM64 = 0x0100000C
_EXECUTE = 2
_LOAD_DYLIB, _REEXPORT_DYLIB, _RPATH = 0xC, 0x8000001F, 0x8000001C
_VERSION_MIN_MACOS, _BUILD_VERSION = 0x24, 0x32
_SLICES = 16
"""A fat file has a few. A Java class begins alike, and says at the same place that it is of version 45 or later."""

Version = tuple[int, int]


@dataclass(frozen=True)
class MachO:
    """minimum: macOS, or None if it does not say. libraries: without those that may be missing (weak)."""

    executable: bool
    minimum: Version | None
    libraries: tuple[str, ...]
    rpaths: tuple[str, ...]


def read(path: Path) -> MachO | None:
    """None if it is not a Mach-O file. Raises ValueError if it has no arm64 part, or is cut off."""
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            return None
        start, (magic, slices) = 0, struct.unpack(">2I", head)
        if magic == FAT_MAGIC and slices <= _SLICES:
            start = _arm64_part(file.read(20 * slices))
        elif head[:4] != MAGIC.to_bytes(4, "little"):
            return None
        file.seek(start)
        header = file.read(32)
        if len(header) < 32:
            raise ValueError("it is cut off")
        magic, cpu, _, kind, _, size, _, _ = struct.unpack("<8I", header)
        if magic != MAGIC or cpu != ARM64:
            raise ValueError("it is not for arm64")
        commands = file.read(size)
        if len(commands) < size:
            raise ValueError("it is cut off")
    return _parsed(commands, kind == _EXECUTE)


def _arm64_part(table: bytes) -> int:
    """Where it begins. table: five big-endian numbers a part: processor, its subtype, offset, size, alignment."""
    for cpu, _, offset, _, _ in struct.iter_unpack(">5I", table[: len(table) // 20 * 20]):
        if cpu == ARM64:
            return int(offset)
    raise ValueError("it is not for arm64")


def _parsed(commands: bytes, executable: bool) -> MachO:
    minimum, at = None, 0
    libraries, rpaths = list[str](), list[str]()
    while at + 16 <= len(commands):
        command, size, first, second = struct.unpack_from("<4I", commands, at)
        if size < 8:
            raise ValueError("a load command has no length")
        if command in (_VERSION_MIN_MACOS, _BUILD_VERSION):
            packed = first if command == _VERSION_MIN_MACOS else second
            minimum = (packed >> 16, packed >> 8 & 0xFF)
        elif command in (_LOAD_DYLIB, _REEXPORT_DYLIB, _RPATH):
            name = commands[at + first : at + size].split(b"\0")[0].decode(errors="replace")
            (rpaths if command == _RPATH else libraries).append(name)
        at += size
    return MachO(executable, minimum, tuple(libraries), tuple(rpaths))
