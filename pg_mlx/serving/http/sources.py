"""Pictures as a request names them: data URIs, and addresses and files where the server allows them."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..error_codes import ServingError
from ..service.limits import Limits
from ..service.requests import read_file
from .errors import APIError, bad_request
from .events import in_thread
from .fetch import fetch
from .settings import Settings

_DATA = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)


async def pictures(named: Sequence[tuple[str, str]], settings: Settings, limits: Limits) -> list[bytes]:
    """The bytes of each picture file. named: the place of each picture in the request, and its name there. Raises
    APIError."""
    if len(named) > limits.pictures:
        raise APIError(413, "too_large", f"a request has 1 to {limits.pictures} pictures, not {len(named)}")
    return [await _picture(name, place, settings, limits) for place, name in named]


async def _picture(name: str, place: str, settings: Settings, limits: Limits) -> bytes:
    scheme = match[1].lower() if (match := _SCHEME.match(name)) else "file"
    if scheme == "data":
        return await in_thread(_from_data, name, place, limits.picture_bytes)
    if scheme in ("http", "https"):
        if not settings.urls:
            raise APIError(400, "not_allowed", f"{place}: this server fetches no pictures; send a data URI", place)
        return await fetch(name, place, limits.picture_bytes, settings.fetch_s)
    if scheme == "file":
        if not settings.folders:
            raise APIError(400, "not_allowed", f"{place}: this server reads no files; send a data URI", place)
        return await in_thread(_from_file, name, place, settings.folders, limits.picture_bytes)
    raise bad_request(f"{place}: a picture is a data URI, or where it is allowed an http(s) address or a file", place)


def _from_data(name: str, place: str, limit: int) -> bytes:
    head = _DATA.match(name)
    if not head:
        raise bad_request(f"{place} is no data URI in base64", place)
    payload = name[head.end() :]
    if len(payload) > (limit + 2) // 3 * 4:
        raise APIError(413, "too_large", f"{place} is larger than {limit} bytes", place)
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError:
        raise APIError(400, "bad_image", f"{place} is not in base64", place) from None


def _from_file(name: str, place: str, folders: Sequence[Path], limit: int) -> bytes:
    """The bytes of a file in one of the folders, symbolic links followed first. For every other name the error is the
    same: it must not say which files there are."""
    refused = APIError(400, "bad_image", f"{place}: there is no such picture that may be read", place)
    if name[:5].lower() == "file:":
        address = urlsplit(name)
        if address.netloc not in ("", "localhost"):
            raise refused
        name = unquote(address.path)
    for folder in folders:
        try:
            path = (folder / name).resolve(strict=True)
            if path.is_relative_to(folder.resolve()) and path.is_file():
                return read_file(path, limit)
        except ServingError as error:
            if error.code == "too_large":
                raise APIError(413, "too_large", f"{place} is larger than {limit} bytes", place) from None
        except (OSError, ValueError, RuntimeError):  # none there, a zero byte, a circle of links
            continue
    raise refused
