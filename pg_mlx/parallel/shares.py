"""How much each rank holds, in proportion to the others."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from ..errors import InputError

MODES = ("pipeline", "tensor")
"""The ways to divide a model (plan.py)."""


def parse_shares(text: str) -> tuple[int, ...]:
    """ "10:6" -> (10, 6). Raises InputError."""
    if not re.fullmatch(r"[1-9][0-9]{0,3}(:[1-9][0-9]{0,3})+", text):
        raise InputError(f"{text!r} is not shares such as 10:6, which gives the first of two ranks 10 parts of 16")
    return tuple(map(int, text.split(":")))


def checked_shares(shares: Sequence[int] | None, size: int) -> tuple[int, ...]:
    """A share for each rank: those given, or equal ones. Raises InputError if they are for another number of ranks."""
    if shares is None:
        return (1,) * size
    if len(shares) != size:
        raise InputError(f"--shares {':'.join(map(str, shares))} is for {len(shares)} ranks, but there are {size}")
    return tuple(shares)


def cut(total: int, unit: int, shares: Sequence[int], what: str) -> list[range]:
    """0..total-1 cut in proportion to the shares, in whole units, at least one for each share.

    what: the name of what is cut, for messages. Raises InputError if there are too few units.
    """
    units, ranks = total // unit, len(shares)
    if total % unit or units < ranks:
        groups = f" in whole groups of {unit}" if unit > 1 else ""
        raise InputError(f"{total} {what} cannot be divided among {ranks} ranks{groups}")
    bounds, sum_so_far = [0], 0
    for index, share in enumerate(shares):
        sum_so_far += share
        bound = round(units * sum_so_far / sum(shares))
        bounds.append(min(max(bound, bounds[-1] + 1), units - (ranks - 1 - index)))
    return [range(start * unit, stop * unit) for start, stop in itertools.pairwise(bounds)]
