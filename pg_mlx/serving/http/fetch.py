"""Fetches a picture from an address that a client gives: public addresses only, within limits of bytes and seconds."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from collections.abc import Callable
from urllib.parse import quote, urljoin, urlsplit

import anyio
import h11

from ...processor.download import tls_context
from ...threads import start
from .errors import APIError

_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16")))
"""IPv6 networks whose addresses hold an IPv4 address, to which a gateway would connect."""


REDIRECTS = 3
"""How often an address may lead to another one."""


async def fetch(
    url: str, place: str, limit: int, seconds: float, take: Callable[[int], None] = lambda size: None
) -> bytes:
    """The bytes at an address; whether they are a picture is seen when they are decoded, since many stores send no type
    or a wrong one. place: of the address in the request. limit: of the bytes. seconds: for everything. take: called
    with the number of bytes that have come. Raises APIError, which never repeats anything that was found at an address
    that is not public.

    A name is resolved once, and the connection goes to the address that was looked at. Redirects are followed, and each
    of their addresses is looked at like the first.
    """
    try:
        with anyio.fail_after(seconds):
            for _ in range(REDIRECTS + 1):
                found = await _fetch(url, limit, take)
                if isinstance(found, bytes):
                    return found
                url = found
        raise _No(f"the address redirects more than {REDIRECTS} times")
    except TimeoutError:
        reason, status = f"not fetched within {seconds:g} s", 504
    except _TooLarge:
        reason, status = f"larger than {limit} bytes", 413
    except _No as no:
        reason, status = str(no), 400
    except (OSError, ValueError, h11.ProtocolError, asyncio.IncompleteReadError) as error:
        reason, status = f"cannot be fetched ({type(error).__name__})", 400
    code = {413: "too_large", 504: "deadline"}.get(status, "bad_image")
    raise APIError(status, code, f"{place}: {reason}", place)


class _No(Exception):
    pass


class _TooLarge(Exception):
    pass


async def _fetch(url: str, limit: int, take: Callable[[int], None]) -> bytes | str:
    """What is there, or the address to which it redirects."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname or address.username is not None:
        raise _No("an address is http(s)://host/path, without a user")
    secure = address.scheme == "https"
    host = address.hostname.encode("idna").decode("ascii") if ":" not in address.hostname else address.hostname
    port = address.port or (443 if secure else 80)
    target = quote(address.path or "/", safe="%/:=&?~+!$,;'@()*[]")
    if address.query:
        target += "?" + quote(address.query, safe="%/:=&?~+!$,;'@()*[]")
    name = f"[{host}]" if ":" in host else host
    request = h11.Request(
        method="GET",
        target=target,
        headers=[
            ("Host", name if address.port is None else f"{name}:{port}"),
            ("User-Agent", "pg_mlx"),
            ("Accept", "image/*"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
        ],
    )
    reader, writer = await asyncio.open_connection(
        await resolve(host, port), port, ssl=tls_context() if secure else None,
        server_hostname=host if secure else None,
    )  # fmt: skip
    try:
        found = await _exchange(request, reader, writer, limit, take)
    finally:
        writer.transport.abort()
    return found if isinstance(found, bytes) else urljoin(url, found)


async def resolve(host: str, port: int) -> str:
    """An IP address of a host. Raises an error if any of the host's addresses is not public."""
    # On a thread that nobody waits for at the end of the program: a lookup can take a minute.
    looked_up = start(functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM))
    found = await asyncio.wrap_future(looked_up)
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(is_public, addresses)):
        raise _No("the address is not a public one")
    return addresses[0]


def is_public(text: str) -> bool:
    """Whether an IP address is public: not of this machine, a local network, or a reserved range."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            address = address.ipv4_mapped
        elif address.is_site_local or any(address in network for network in _TRANSLATED):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def _exchange(
    request: h11.Request,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    limit: int,
    take: Callable[[int], None],
) -> bytes | str:
    """The body of the answer, or where it redirects to."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=16 << 10)
    writer.write((connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b""))
    await writer.drain()
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(1 << 16))
        elif isinstance(event, h11.Response):
            if (location := _check(event, limit)) is not None:
                return location
        elif isinstance(event, h11.Data):
            take(len(event.data))
            body += event.data
            if len(body) > limit:
                raise _TooLarge
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise _No("the connection was closed")


def _check(response: h11.Response, limit: int) -> str | None:
    """Where an answer redirects to; None if it has a body to read. Raises _No or _TooLarge."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    if response.status_code in (301, 302, 303, 307, 308) and "location" in headers:
        return headers["location"]
    if response.status_code != 200:
        raise _No(f"the server answered {response.status_code}")
    if headers.get("content-encoding", "identity") != "identity":
        raise _No("the answer is compressed")
    if int(headers.get("content-length", 0)) > limit:
        raise _TooLarge
    return None
