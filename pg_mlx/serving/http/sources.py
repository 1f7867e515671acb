"""Pictures as a request names them: data URIs, and addresses and files where the server allows them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import InputError, TooLarge
from ...processor.sources import decode_data_uri
from ..error_codes import ServingError
from ..service.limits import Limits
from ..service.requests import read_file
from .errors import APIError, bad_request
from .events import in_thread
from .fetch import fetch
from .settings import Settings

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)

Take = Callable[[int], None]
"""Called with the bytes that a request holds from now on; raises APIError if that is too much."""


async def pictures(
    named: Sequence[tuple[str, str]], settings: Settings, limits: Limits, take: Take = lambda size: None
) -> list[bytes]:
    """The bytes of each picture file. named: the place of each picture in the request, and its name there. take: called
    before bytes are read that are not in the request itself. Raises APIError."""
    if len(named) > limits.pictures:
        raise APIError(413, "too_large", f"a request has 1 to {limits.pictures} pictures, not {len(named)}")
    return [await _picture(name.strip(), place, settings, limits, take) for place, name in named]


async def _picture(name: str, place: str, settings: Settings, limits: Limits, take: Take) -> bytes:
    scheme = match[1].lower() if (match := _SCHEME.match(name)) else "file"
    if scheme == "data":
        return await in_thread(_from_data, name, place, limits.picture_bytes)
    if scheme in ("http", "https"):
        if not settings.urls:
            raise APIError(400, "not_allowed", f"{place}: this server fetches no pictures; send a data URI", place)
        return await fetch(name, place, limits.picture_bytes, settings.fetch_s, take)
    if scheme == "file":
        if not settings.folders:
            raise APIError(400, "not_allowed", f"{place}: this server reads no files; send a data URI", place)
        path, size = await in_thread(_file, name, place, settings.folders)
        take(min(size, limits.picture_bytes))
        return await in_thread(_read, path, place, limits.picture_bytes)
    raise bad_request(f"{place}: a picture is a data URI, or where it is allowed an http(s) address or a file", place)


def _from_data(name: str, place: str, limit: int) -> bytes:
    try:
        return decode_data_uri(name, limit)
    except TooLarge:
        raise APIError(413, "too_large", f"{place} is larger than {limit} bytes", place) from None
    except InputError as error:
        raise APIError(400, "bad_image", f"{place}: {error}", place) from None


def _file(name: str, place: str, folders: Sequence[Path]) -> tuple[Path, int]:
    """A file in one of the folders, symbolic links followed first, and its size in bytes. For every other name the
    error is the same: it must not say which files there are."""
    if name[:5].lower() == "file:":
        address = urlsplit(name)
        if address.netloc not in ("", "localhost"):
            raise _refused(place)
        name = unquote(address.path)
    for folder in folders:
        try:
            path = (folder / name).resolve(strict=True)
            if path.is_relative_to(folder.resolve()) and path.is_file():
                return path, path.stat().st_size
        except (OSError, ValueError, RuntimeError):  # none there, a zero byte, a circle of links
            continue
    raise _refused(place)


def _read(path: Path, place: str, limit: int) -> bytes:
    try:
        return read_file(path, limit)
    except ServingError as error:
        if error.code == "too_large":
            raise APIError(413, "too_large", f"{place} is larger than {limit} bytes", place) from None
        raise _refused(place) from None


def _refused(place: str) -> APIError:
    return APIError(400, "bad_image", f"{place}: there is no such picture that may be read", place)
