"""Bits by gain per byte: every matrix begins with the fewest bits, and the one that gains most a byte gets more.

What a matrix costs is the divergence that it makes alone at MEASURED_BITS. The divergences of several add up, and each
falls LAW times with every bit more (measured on the demo, where the sum is within a tenth of the divergence of all
together at 3 and 4 bits). So one width measured is enough for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

MEASURED_BITS = 3
LAW = 4.85
"""How many times less divergence one bit more makes."""

FAST_WORTH = 1.5
"""How many times the divergence may be predicted for having Metal's fast kernels everywhere."""

_LEAST = 1e-12


class Sensitive(NamedTuple):
    """Matrices that get the same bits, as the choice sees them."""

    kl: float
    """What they cost at MEASURED_BITS, in nats."""
    bytes: Mapping[int, int]
    """Their size at each width that they may have, from the fewest bits on."""

    def cost(self, bits: int) -> float:
        """The predicted divergence at a width, in nats."""
        return max(self.kl, _LEAST) * LAW ** (MEASURED_BITS - bits)


class Allocation(NamedTuple):
    """Bits for each item, their bytes together, and the divergence that is predicted of them, in nats."""

    bits: list[int]
    bytes: int
    kl: float


def allocate(items: Sequence[Sensitive], limit: int) -> list[Allocation]:
    """The allocations on the way from the fewest bits to the best that takes at most `limit` bytes, which is the last.

    The first is there even if it takes more. A step that does not fit is left out, and smaller ones are tried.
    """
    widths = [list(item.bytes) for item in items]
    at = [0] * len(items)
    size = sum(item.bytes[own[0]] for item, own in zip(items, widths, strict=True))
    kl = sum(item.cost(own[0]) for item, own in zip(items, widths, strict=True))

    def now() -> Allocation:
        return Allocation([own[index] for own, index in zip(widths, at, strict=True)], size, kl)

    steps = [now()]
    while True:
        best, most = None, 0.0
        for number, item in enumerate(items):
            if at[number] + 1 == len(widths[number]):
                continue
            before, after = widths[number][at[number] : at[number] + 2]
            more = item.bytes[after] - item.bytes[before]
            gain = item.cost(before) - item.cost(after)
            if size + more <= limit and gain / more > most:
                best, most = number, gain / more
        if best is None:
            return steps
        before, after = widths[best][at[best] : at[best] + 2]
        at[best] += 1
        size += items[best].bytes[after] - items[best].bytes[before]
        kl -= items[best].cost(before) - items[best].cost(after)
        steps.append(now())


def allocate_fast(items: Sequence[Sensitive], fast: Sequence[Sequence[int]], limit: int) -> Allocation:
    """The best of `allocate`, with the fast widths of each item alone if these fit and cost at most FAST_WORTH times as
    much."""
    free = allocate(items, limit)[-1]
    quick = [
        item._replace(bytes={bits: size for bits, size in item.bytes.items() if bits in own})
        for item, own in zip(items, fast, strict=True)
    ]
    narrow = allocate(quick, limit)[-1]
    return narrow if narrow.bytes <= limit and narrow.kl <= FAST_WORTH * free.kl else free
