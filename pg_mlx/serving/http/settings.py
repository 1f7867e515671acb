"""What the server allows, and how long it waits for its clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""What a browser calls this machine, as it stands in a Host header."""


@dataclass(frozen=True)
class Settings:
    """What is not about the model: that is in `Limits`."""

    model_name: str
    """What clients call the model."""
    api_key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] | None = LOOPBACK
    """Names by which the server may be called, without port; None for any. Without this check every web page could have
    its own name resolved to this machine, and then read what the server says to it (DNS rebinding)."""
    origins: tuple[str, ...] = ()
    """Other web pages that may ask, as "https://example.com"; "*" for any."""
    urls: bool = False
    """Fetch pictures from public addresses."""
    folders: tuple[Path, ...] = ()
    """Read pictures from these."""
    body_bytes: int = 32 << 20
    """Of one request."""
    bodies_bytes: int = 256 << 20
    """Of all requests that are being read, together. While JSON is taken apart it takes three times as much."""
    body_s: float = 30.0
    """Until a body is complete."""
    header_s: float = 10.0
    """Until the head of a request is complete."""
    write_s: float = 30.0
    """Until a client has taken what was sent to it."""
    request_s: float = 300.0
    """Until an answer is complete, from its submission."""
    fetch_s: float = 10.0
    """Until a picture is fetched."""
    connections: int = 256
    verbose: bool = False
    """A line on stderr for each request: method, path, status, seconds."""
