"""Reading .npz archives member by member, without ever holding a member in memory.

A stored member is mapped where it lies in the archive; a compressed one is unpacked to a temporary file first. Pickled
objects are refused by construction: only plain number types are known here.
"""

from __future__ import annotations

import lzma
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ..errors import InputError, PgMlxError
from .regular import open_regular

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip member: the last two numbers are the lengths of name and extra
_MAX_HEADER_BYTES = 64 << 10
_MAX_RANK = 8
_MAX_MEMBERS = 20_000
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError, MemoryError, OverflowError),
    *(struct.error, SyntaxError, tokenize.TokenError, KeyError, IndexError, TypeError, AttributeError),
)
"""What zipfile and NumPy raise for archives and headers that are none."""


@dataclass(frozen=True)
class _Member:
    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool
    header_bytes: int


class NpzArchive:
    """An open archive: its `members` by key, without ".npy". Raises InputError if it is not a sound archive of plain
    arrays."""

    def __init__(self, path: Path):
        self.path = path
        self._mapped: dict[str, np.ndarray] = {}
        try:
            self._zip = zipfile.ZipFile(open_regular(path))
            if len(self._zip.namelist()) > _MAX_MEMBERS:
                raise ValueError(f"it has more than {_MAX_MEMBERS} members")
            self.members = {
                info.filename.removesuffix(".npy"): self._member(info)
                for info in self._zip.infolist()
                if info.filename.endswith(".npy")
            }
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from None
        except InputError:
            raise
        except _DAMAGED as error:
            raise InputError(f"{path} is not a sound .npz archive: {_brief(error)}") from None

    def _member(self, info: zipfile.ZipInfo) -> _Member:
        with self._zip.open(info) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran_order, dtype = read(file, max_header_size=_MAX_HEADER_BYTES)
            member = _Member(info, shape, dtype, fortran_order, file.tell())
        if not isinstance(shape, tuple) or len(shape) > _MAX_RANK or not all(0 <= n < 1 << 63 for n in shape):
            raise ValueError(f"{info.filename} has shape {str(shape)[:100]}")
        if dtype.kind not in "fiubV" or dtype.hasobject or not dtype.itemsize:
            raise ValueError(f"{info.filename} holds {dtype}, not plain numbers")
        if info.file_size != member.header_bytes + int(np.prod(shape, dtype=object)) * dtype.itemsize:
            raise ValueError(f"{info.filename} is {info.file_size} bytes long, which does not fit shape {shape}")
        return member

    def read(self, key: str) -> np.ndarray:
        """The array, mapped: pages are read when they are touched."""
        if key not in self._mapped:
            member = self.members[key]
            source, offset = self._stored_at(member)
            self._mapped[key] = np.memmap(
                source, member.dtype, "r", offset, member.shape, "F" if member.fortran_order else "C"
            )
        return self._mapped[key]

    def _stored_at(self, member: _Member) -> tuple[Any, int]:
        """A file that holds the bytes of a member uncompressed, and the offset of its numbers in it."""
        if member.info.compress_type == zipfile.ZIP_STORED:
            file = cast(IO[bytes], self._zip.fp)  # open already, so it stays readable if its name goes away
            file.seek(member.info.header_offset)
            *_, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            start = member.info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
            if start + member.info.file_size > os.fstat(file.fileno()).st_size:
                raise InputError(f"{self.path} is truncated: {member.info.filename} goes beyond its end")
            return file, start + member.header_bytes
        try:
            unpacked = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the mapping)
            with self._zip.open(member.info) as file:
                while chunk := file.read(16 << 20):
                    unpacked.write(chunk)
            unpacked.flush()
        except OSError as error:  # a full disk, in nearly all cases
            raise PgMlxError(
                f"{self.path} is compressed and cannot be unpacked into {_temporary_folder()}: "
                f"{error.strerror or error}; TMPDIR may name another folder"
            ) from error
        except _DAMAGED as error:
            raise InputError(f"{self.path}: {member.info.filename} cannot be unpacked: {_brief(error)}") from None
        return unpacked, member.header_bytes


def _brief(error: Exception) -> str:
    """What an error says, bounded: NumPy repeats a header whole."""
    return str(error)[:300] or type(error).__name__


def _temporary_folder() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "the folder for temporary files"
