"""What the server allows, and how long it waits for its clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""The names of this machine in the Host header of a request from it."""


@dataclass(frozen=True)
class Settings:
    """What the server allows. Limits of the model's work are in service.limits.Limits."""

    model_name: str
    """What clients call the model."""
    api_key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] | None = LOOPBACK
    """Names by which the server may be called, without port; None for any. Without this check any web page could let
    its own name point to this machine, and then read the server's answers (DNS rebinding)."""
    origins: tuple[str, ...] = ()
    """Other web pages that may send requests, as "https://example.com"; "*" for any."""
    urls: bool = False
    """Fetch pictures from public addresses."""
    folders: tuple[Path, ...] = ()
    """Read pictures from these folders."""
    body_bytes: int = 32 << 20
    """Longest body of one request."""
    bodies_bytes: int = 256 << 20
    """Longest bodies of all requests that are being read, together. While JSON is parsed it takes three times as
    much."""
    body_s: float = 30.0
    """Seconds until a body must be complete."""
    header_s: float = 10.0
    """Seconds until the head of a request must be complete."""
    write_s: float = 30.0
    """Seconds until a client must have taken what was sent to it."""
    request_s: float = 300.0
    """Seconds from the submission until an answer must be complete."""
    fetch_s: float = 10.0
    """Seconds until a picture must be fetched."""
    connections: int = 256
    """Most connections at a time."""
    verbose: bool = False
    """A line on stderr for each request: method, path, status, seconds."""
