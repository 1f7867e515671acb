"""A picture from an http or https address."""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    import ssl

URL_TIMEOUT_S = 30.0
_SAFE = "%/:=&?~+!$,;'@()*[]"
_SHOWN = 500
_MASKED = r"\1..."
_SECRETS = re.compile(
    r"([?&;][^=&;#]*(?:token|sig|signature|key|secret|password|passwd|credential|auth)[^=&;#]*=)[^&;#]+", re.IGNORECASE
)


def without_secrets(url: str) -> str:
    """The beginning of an address as messages may show it: no user, no password, no key."""
    scheme, separator, rest = url.partition("://")
    end = min((at for mark in "/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    host = rest[:end].rpartition("@")[2]
    return f"{scheme}{separator}{host[:_SHOWN]}{_SECRETS.sub(_MASKED, rest[end : end + _SHOWN])}"


def tls_context() -> ssl.SSLContext:
    """Who is trusted for https: the system's store, or where Python has none (python.org's on macOS) certifi's."""
    import ssl

    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and not _has_folder(ssl.get_default_verify_paths().capath):
        with contextlib.suppress(ImportError, OSError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


def _has_folder(path: str | None) -> bool:
    """Whether it is a folder of certificates, which are looked up there one by one and never counted."""
    try:
        return path is not None and next(Path(path).iterdir(), None) is not None
    except OSError:
        return False


def download(url: str, name: str, read: Callable[[Any], bytes]) -> bytes:
    """What the address answers. name: how messages call it. read: takes the open answer. Raises InputError."""
    import urllib.error  # half of this package's import time, were it imported above
    import urllib.parse
    import urllib.request

    opener = urllib.request.OpenerDirector()  # the default one follows a redirect to ftp before anyone can look
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    try:
        opener.add_handler(urllib.request.HTTPSHandler(context=tls_context()))
        request = _request(url, name)
        with opener.open(request, timeout=URL_TIMEOUT_S) as response:
            if urllib.parse.urlsplit(response.geturl()).scheme not in ("http", "https"):
                raise InputError(f"{name} leads away from http")
            return read(response)
    except InputError:
        raise
    except urllib.error.HTTPError as error:
        raise InputError(f"cannot fetch {name}: the server answered {error.code}") from None
    except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors; http.client's are below
        raise InputError(f"cannot fetch {name}: {str(getattr(error, 'reason', error))[:300]}") from None
    except Exception as error:  # http.client.HTTPException: an answer that is no HTTP
        raise InputError(f"cannot fetch {name}: {type(error).__name__}") from None


def _request(url: str, name: str) -> Any:
    """A request for an address as people paste it: with spaces, umlauts in the host too, and with a password, which
    goes to that host only."""
    import urllib.parse
    import urllib.request

    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:  # whose message may repeat a password
        raise InputError(f"cannot fetch {name}: that is not an address") from None
    user, _, host = parts.netloc.rpartition("@")
    if not host.isascii():
        name, separator, port = host.partition(":")
        host = name.encode("idna").decode("ascii") + separator + port
    path = urllib.parse.quote(parts.path, safe=_SAFE)
    query = urllib.parse.quote(parts.query, safe=_SAFE)
    address = urllib.parse.urlunsplit((parts.scheme.lower(), host, path, query, ""))
    request = urllib.request.Request(address, headers={"User-Agent": "pg_mlx"})
    if user:
        key = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {key}")
    return request
