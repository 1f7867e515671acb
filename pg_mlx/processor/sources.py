"""A path, address, data URI, bytes or an open file, as people give them, to bytes."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..errors import InputError, TooLarge

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE = re.compile(r"#(?:page|frame)=(\d{1,9})$")
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{1,31}):", re.IGNORECASE)
_DATA_HEAD = re.compile(r"data:([^,]{0,1000}),", re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*=*")
_PLAIN = bytes.maketrans(b"-_", b"+/")
"""From the base64 of addresses to the other one."""
_BARE_BASE64 = re.compile(r"(?:iVBORw0KGgo|/9j/|_9j_|R0lGOD|UklGR|Qk0|SUkq|TU0AK)[A-Za-z0-9+/=_\s-]{60,}")
"""The first bytes of pictures in base64; such a text is no path."""
_SPACES = str.maketrans(
    dict.fromkeys("\u00a0\u202f\u2009\u2007\u2002\u2003\u200a", " ") | {"\u2019": "'", "\u02bc": "'"}
)
_SHOWN = 300


class Given(NamedTuple):
    """What a source holds, not decoded."""

    data: bytes
    name: str
    """How messages call it: bounded, without passwords."""
    page: int | None = None
    """What "#page=" behind the name asks for, from 1."""


def shown(name: str) -> str:
    """A source's name as messages may repeat it: at most 300 characters, of a data URI its type and length only."""
    from .download import without_secrets

    if name[:5].lower() == "data:":
        kind = name[5:60].partition(",")[0].partition(";")[0] or "text/plain"
        return f"the data URI ({kind}, {len(name)} characters)"
    length = len(name)
    if "://" in name[:64]:
        name = without_secrets(name)
    return name if len(name) <= _SHOWN else f"{name[: _SHOWN - 40]} ... ({length} characters)"


def read_source(source: Any, max_bytes: int) -> Given | None:
    """The bytes of a source; None if it is of another kind, as an array. Raises InputError, and TooLarge for a size."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = "the picture's bytes"
        if memoryview(source).nbytes > max_bytes:
            raise _too_large(name, max_bytes)
        return Given(bytes(source), name)
    if isinstance(source, (str, os.PathLike)):
        try:
            text = os.fsdecode(source)
        except Exception as error:  # whatever an object's own __fspath__ raises
            raise InputError(f"the path of a {type(source).__name__} cannot be read: {error}") from None
        return _read_name(text, max_bytes, is_text=isinstance(source, str))
    if hasattr(source, "read"):
        name = shown(str(getattr(source, "name", "the open file")))
        try:
            return Given(_read(source, name, max_bytes), name)
        except InputError:
            raise
        except UnicodeDecodeError:
            raise InputError(f"{name} is open as text; a picture must be opened as binary") from None
        except (OSError, ValueError) as error:  # closed, or open for writing only
            raise InputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None
    return None


def decode_data_uri(uri: str, max_bytes: int) -> bytes:
    """The bytes of a data URI: base64 with line breaks, without padding, with - and _, percent-encoded; or plain text.

    Raises InputError for what is none, TooLarge for more than max_bytes.
    """
    head = _DATA_HEAD.match(uri)
    name = shown(uri)
    if not head:
        raise InputError(f"{name} has no comma behind its type, as data:image/png;base64,... has")
    if len(uri) > 4 * max_bytes + 4096:  # %2B, and a line break, for each of four letters
        raise _too_large(name, max_bytes)
    from urllib.parse import unquote_to_bytes

    payload = uri[head.end() :]
    encoded = unquote_to_bytes(payload) if "%" in payload else payload.encode("utf-8", "surrogatepass")
    if re.search(r";\s*base64\s*$", head[1], re.IGNORECASE):
        encoded = _from_base64(encoded, name)
    if len(encoded) > max_bytes:
        raise _too_large(name, max_bytes)
    return encoded


def _from_base64(text: bytes, name: str) -> bytes:
    plain = text.translate(_PLAIN, delete=b" \t\r\n\v\f")
    letters = plain.rstrip(b"=")
    if not _BASE64.fullmatch(plain) or len(letters) % 4 == 1:
        raise InputError(f"{name} is not in base64: it is cut off, or holds other characters")
    try:
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except binascii.Error:
        raise InputError(f"{name} is not in base64") from None


def _read_name(name: str, max_bytes: int, is_text: bool) -> Given:
    if name == "-":
        if sys.stdin is None:  # a program without a terminal, as in a macOS app
            raise InputError("there is no stdin to read a picture from")
        return Given(_read(sys.stdin.buffer, "stdin", max_bytes), "stdin")
    scheme = match[1].lower() if is_text and (match := _SCHEME.match(name)) else ""
    if scheme == "data":
        return Given(decode_data_uri(name, max_bytes), shown(name))
    plain, page = _page_of(name)
    if scheme in ("http", "https") and plain[len(scheme) :].startswith("://"):
        from .download import download

        name_shown = shown(plain)
        return Given(download(plain, name_shown, lambda file: _read(file, name_shown, max_bytes)), name_shown, page)
    if scheme == "file" and plain[5:6] == "/":
        plain = _path_of(plain)
    elif plain[len(scheme) :].startswith("://") and scheme:
        raise InputError(f"cannot fetch {shown(name)}: only http and https addresses, data URIs and files are read")
    elif _BARE_BASE64.fullmatch(name):
        return Given(_from_base64(name.encode("ascii"), "the text"), f"the text in base64 ({len(name)} characters)")
    return _read_path(name, plain, page, max_bytes)


def _page_of(name: str) -> tuple[str, int | None]:
    match = _PAGE.search(name)
    return (name[: match.start()], int(match[1])) if match else (name, None)


def _path_of(url: str) -> str:
    """The path of a file: address. Raises InputError for a file on another machine."""
    from urllib.parse import unquote, urlsplit

    try:
        address = urlsplit(url)
    except ValueError:
        address = None
    if address is None or address.netloc.lower() not in ("", "localhost"):
        raise InputError(f"{shown(url)} names a file on another machine; copy it here first")
    return unquote(url[url.index(address.path, 5) :] if address.path else "")


def _read_path(given: str, plain: str, page: int | None, max_bytes: int) -> Given:
    """The file; given: its name with the page, which may really be its name."""
    name = shown(given)
    try:
        path = _existing(given) if page is not None else None
        if path is not None:
            page = None
        path = path or _existing(plain) or Path(plain)
        if path.is_dir():
            raise InputError(f"{name} is a folder, not a picture")
        with path.open("rb") as file:
            return Given(_read(file, name, max_bytes), name, page)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"no such picture: {name}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None


def _existing(name: str) -> Path | None:
    """The file or folder of that name, or the only one whose name looks the same: macOS puts a narrow no-break space
    into the names of its screenshots, and other systems write accents otherwise."""
    path = Path(name)
    with contextlib.suppress(RuntimeError):  # "~x.png" is nobody's home, but may be a file
        path = path.expanduser()
    if path.exists():
        return path
    found = Path(path.anchor)
    for part in path.parts[1 if path.anchor else 0 :]:
        if (found / part).exists():
            found = found / part
            continue
        alike = [entry for entry in _entries(found) if _plain(entry) == _plain(part)]
        if len(alike) != 1:
            return None
        found = found / alike[0]
    return found


def _entries(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name


def _plain(name: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", name).translate(_SPACES)


def _read(file: BinaryIO | Any, name: str, max_bytes: int) -> bytes:
    chunks, total = [], 0
    while chunk := file.read(min(1 << 20, max_bytes + 1 - total)):
        if not isinstance(chunk, bytes):
            raise InputError(f"{name} is open as text; a picture must be opened as binary")
        chunks.append(chunk)
        total += len(chunk)
        if total > max_bytes:
            raise _too_large(name, max_bytes)
    return b"".join(chunks)


def _too_large(name: str, max_bytes: int) -> TooLarge:
    size = f"{max_bytes >> 20} MiB" if max_bytes >= 1 << 20 else f"{max_bytes} bytes"
    return TooLarge(f"{name} is larger than {size}, which is too much for a picture")
