"""Sizes of memory, as people write them."""

from __future__ import annotations

import os
import re

from ..errors import InputError

_POWERS = " KMGT"


def parse_size(text: str | int) -> int:
    """Bytes of "8GB" (10^9 each), "6.5GiB" or "6.5G" (2^30 each) or a plain number of bytes; K, M and T likewise.
    Raises InputError."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?(?:([KMGT])(I?B)?|B)?", str(text).strip().upper(), re.ASCII)
    size = 0
    if match:
        number, unit, suffix = match.groups()
        size = int(float(number) * (1000 if suffix == "B" else 1024) ** _POWERS.index(unit or " "))
    if size < 1:
        raise InputError(f"{text!r} is not a size of memory, such as 8GB, 6.5GiB or 500MB")
    return size


def format_size(size: float) -> str:
    """A number of bytes to be read: "3.05 GB", "21.4 MB", "512 kB" (powers of 1000)."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 999_500 else f"{size / 1e3:.0f} kB"


def machine_bytes() -> int:
    """The memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
