"""Which rows a step learns: a pure function of (seed, step), so training goes on exactly where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ..errors import InputError

WINDOW = 16
"""Batches whose rows are sorted by length together: little padding, and still another order each epoch."""


class RowOrder:
    """An endless sequence of rows: epoch after epoch, each row once in each."""

    def __init__(self, lengths: Sequence[int], together: int, seed: int):
        """lengths: of the rows, in tokens. together: rows of like length that follow each other, a batch's."""
        if not lengths:
            raise InputError("there is no row to learn from")
        self._lengths = np.asarray(lengths)
        self._together = max(1, together)
        self._seed = seed
        self._epoch = lru_cache(2)(self._order)

    def rows(self, first: int, count: int) -> list[int]:
        """Rows number `first`, `first` + 1, ... of the sequence."""
        size = len(self._lengths)
        return [int(self._epoch(place // size)[place % size]) for place in range(first, first + count)]

    def _order(self, epoch: int) -> np.ndarray:
        """int [rows]: shuffled, then sorted by length within windows, then the batches of the epoch shuffled."""
        rng = np.random.default_rng((self._seed, epoch))
        shuffled = rng.permutation(len(self._lengths))
        window = WINDOW * self._together
        groups: list[np.ndarray] = []
        for start in range(0, len(shuffled), window):
            part = shuffled[start : start + window]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            groups += [part[at : at + self._together] for at in range(0, len(part), self._together)]
        return np.concatenate([groups[index] for index in rng.permutation(len(groups))])


def share_of(step: int, batch_size: int, share: float) -> tuple[int, int]:
    """The first row, and the number of rows, that a part of each batch takes at a step, from its own sequence.

    share: of the batch, 0..1. Where it is no whole number of rows, some steps take one more than others.
    """
    before, behind = (int(number * batch_size * share + 1e-9) for number in (step, step + 1))
    return before, behind - before
