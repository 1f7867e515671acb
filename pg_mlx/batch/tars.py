"""Pictures in a tar, as webdataset has them: read where they lie, nothing is unpacked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ..errors import InputError
from ..processor.folder import is_picture
from ..processor.images import MAX_BYTES
from .entries import Entry, Section


class TarListing:
    """The pictures in an uncompressed tar, in its order. One member is in memory at a time."""

    integer_ids = False

    def __init__(self, path: Path):
        """Raises InputError if it is no tar."""
        self.name, self._path = str(path), path
        self.identity = f"{path.name} {path.stat().st_size}"

    def sections(self, size: int) -> list[Section]:
        """Sections that start at the position of a member's header in bytes."""
        found: list[Section] = []
        for _, member in self._pictures(0):
            if found and found[-1].count < size:
                found[-1] = Section(found[-1].start, found[-1].count + 1)
            else:
                found.append(Section(member.offset, 1))
        return found

    def entries(self, section: Section) -> Iterator[Entry]:
        """The id is webdataset's key: the member's path up to the first dot of its name."""
        for (archive, member), _ in zip(self._pictures(section.start), range(section.count), strict=False):
            path = PurePosixPath(member.name)
            key = str(path.with_name(path.name.partition(".")[0]))
            image = f"{self._path}/{member.name}"
            if member.size > MAX_BYTES:
                yield Entry(key, image, error=f"the picture has more than {MAX_BYTES >> 20} MiB")
                continue
            file = archive.extractfile(member)
            yield Entry(key, image, file.read() if file else b"")

    def _pictures(self, start: int) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    while (member := archive.next()) is not None:
                        archive.members.clear()  # type: ignore[attr-defined]  # or all headers would stay in memory
                        if member.isreg() and is_picture(PurePosixPath(member.name).name):
                            yield archive, member
        except tarfile.TarError as error:
            raise InputError(f"{self.name} is not a whole tar (an uncompressed one): {error}") from None
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror or error}") from None
