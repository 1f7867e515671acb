"""Which rows a step learns: a pure function of (seed, step), so training goes on exactly where it stopped."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np

from ..errors import InputError


class RowOrder:
    """An endless sequence of rows: epoch after epoch, each row once in each."""

    def __init__(self, count: int, seed: int):
        """count: of the rows. Raises InputError for none."""
        if count < 1:
            raise InputError("there is no row to learn from")
        self._count = count
        self._epoch = lru_cache(2)(partial(_shuffled, seed, count))

    def rows(self, first: int, count: int) -> list[int]:
        """Rows number `first`, `first` + 1, ... of the sequence."""
        places = (divmod(place, self._count) for place in range(first, first + count))
        return [int(self._epoch(epoch)[place]) for epoch, place in places]


def _shuffled(seed: int, count: int, epoch: int) -> np.ndarray:
    """int [count], the rows of an epoch. Steps are not made of rows of like length: a step of empty answers teaches
    little."""
    return np.random.default_rng((seed, epoch)).permutation(count)


def share_of(first: int, count: int, share: float) -> tuple[int, int]:
    """Which rows of a sequence `first`, `first` + 1, ... (`count` of them) a part takes: the first one and how many, as
    numbers in the part's own sequence. The others, numbered in the same way, are `first` and `count` less these.

    share: of the rows, 0..1. Where it is no whole number of rows, some steps take one more than others.
    """
    before, behind = (int(place * share + 1e-9) for place in (first, first + count))
    return before, behind - before
