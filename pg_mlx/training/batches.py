"""Examples to the batches of each step: order, augmentation, ids and pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import InputError
from ..processor import Processor
from .augment import augment, check_augment
from .batch import TrainingBatch
from .example import Example
from .features import ImageFeatures
from .order import RowOrder, share_of
from .prompts import with_longest_codes
from .regions import RegionWriter


@dataclass(frozen=True)
class Mix:
    """Other data that takes a share of each batch, so that old skills are not forgotten."""

    examples: tuple[Example, ...]
    share: float
    """The share of the rows, more than 0 and less than 1."""


@dataclass(frozen=True)
class BatchOptions:
    """How batches are made."""

    batch_size: int = 8
    seed: int = 0
    augment: tuple[str, ...] = ()
    """Names of augmentations, for the rows of the data itself and not for mixed rows."""
    multiple: int = 1
    """P and S are padded to multiples of this, so that shapes come again."""
    rank: int = 0
    size: int = 1
    """This process takes the rows rank, rank + size, ... of each batch."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.multiple < 1:
            raise InputError(f"a batch of {self.batch_size} rows padded to {self.multiple}: both must be 1 or more")
        if self.seed < 0:
            raise InputError(f"the seed is {self.seed}, but must be 0 or more")
        if not 0 <= self.rank < self.size:
            raise InputError(f"this is process {self.rank} of {self.size}")
        if self.batch_size < self.size:
            raise InputError(f"a batch of {self.batch_size} rows cannot be divided among {self.size} processes")


def parse_mix(text: str) -> tuple[Path, float]:
    """PATH=SHARE as a path and a share. Raises InputError."""
    path, _, share = text.rpartition("=")
    try:
        number = float(share)
    except ValueError:
        number = math.nan
    if not path or not 0 < number < 1:
        raise InputError(f"--mix {text}: it must be PATH=SHARE, with a share between 0 and 1 of each batch")
    return Path(path), number


class Batches:
    """The batches of a run. Each is a pure function of its step."""

    def __init__(
        self,
        examples: Sequence[Example],
        processor: Processor,
        options: BatchOptions | None = None,
        *,
        writer: RegionWriter | None = None,
        features: ImageFeatures | None = None,
        mixes: Sequence[Mix] = (),
    ):
        """writer: for segment answers of masks. features: of a frozen tower; without, batches hold pixels.

        Raises InputError for no example, for shares that leave the data no row, and as check_augment.
        """
        self.options = options or BatchOptions()
        self._processor = processor
        self._writer = writer or RegionWriter(None)
        self._features = features
        check_augment(self.options.augment, examples)
        self._own_share = 1 - sum(mix.share for mix in mixes)
        if self._own_share <= 0 or any(mix.share <= 0 for mix in mixes):
            raise InputError("the shares of --mix must each be more than 0, and less than 1 together")
        self._prompts: dict[str, list[int]] = {}
        parts = [(tuple(examples), self._own_share), *((mix.examples, mix.share) for mix in mixes)]
        self._sets = [
            (rows, RowOrder(len(rows), self.options.seed + 7919 * number), share)
            for number, (rows, share) in enumerate(parts)
        ]

    def steps(self, epochs: float = 1) -> int:
        """How many steps read the data so many times."""
        rows = len(self._sets[0][0]) * epochs
        return max(1, math.ceil(rows / (self.options.batch_size * self._own_share) - 1e-9))

    def rows(self, step: int) -> tuple[list[Example], list[Example]]:
        """All rows of a step (from 0), as the data has them: those of the data itself, and mixed ones."""
        first, count, left = step * self.options.batch_size, self.options.batch_size, 1.0
        mixed: list[Example] = []
        for examples, order, share in self._sets[1:]:
            taken = share_of(first, count, share / left)
            mixed += [examples[index] for index in order.rows(*taken)]
            first, count, left = first - taken[0], count - taken[1], left - share
        examples, order, _ = self._sets[0]
        return [examples[index] for index in order.rows(first, count)], mixed

    def batches(self, step: int, micro_batch_size: int | None = None) -> list[tuple[TrainingBatch, tuple[int, ...]]]:
        """The rows of this process at a step, augmented, in batches of at most `micro_batch_size` rows; with each its
        rows' numbers in the whole step, of which dropout is a function. Rows of like length are together, and the
        processes have rows of all lengths.

        Raises InputError for a picture that cannot be read any more.
        """
        options = self.options
        own, mixed = self.rows(step)
        numbered = sorted(enumerate([*own, *mixed]), key=lambda pair: (self._length(pair[1]), pair[0]))
        numbered = numbered[options.rank :: options.size]
        size = micro_batch_size or len(numbered)
        made = []
        for start in range(0, len(numbered), size):
            part = numbered[start : start + size]
            rows = [
                augment(row, options.augment, options.seed, step, number)
                if options.augment and number < len(own)
                else row
                for number, row in part
            ]
            made.append((self.batch_of(rows), tuple(number for number, _ in part)))
        return made

    def batch_of(self, rows: Sequence[Example]) -> TrainingBatch:
        """These rows as they are, as for validation. Raises InputError as batches."""
        rows = self._writer.written(rows)
        names = [row.image if isinstance(row.image, str) else f"\0{number}" for number, row in enumerate(rows)]
        images = {name: row.image for name, row in zip(names, rows, strict=True)}
        place = {name: number for number, name in enumerate(images)}
        pixels, features = self._pictures(images)
        prefix_ids, prefix_lengths = self._padded([self._prompt(row.prefix) for row in rows])
        suffix_ids, suffix_lengths = self._padded([self._processor.suffix_ids(row.suffix) for row in rows])
        index = [place[name] for name in names]
        return TrainingBatch(pixels, features, index, prefix_ids, prefix_lengths, suffix_ids, suffix_lengths)

    def _pictures(self, images: dict[str, object]) -> tuple[mx.array | None, mx.array | None]:
        """Pixels, or features, of different pictures by name."""
        known = self._features
        wanted = [name for name in images if known is None or not known.knows(name)]
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            read = dict(zip(wanted, pool.map(lambda name: self._processor.pixels(images[name]), wanted), strict=True))
        if known is None:
            return mx.array(np.stack([read[name] for name in images])), None
        return None, known.features({name: read.get(name) for name in images})

    def _length(self, row: Example) -> int:
        """Tokens of prompt and answer."""
        return len(self._prompt(row.prefix)) + len(self._processor.suffix_ids(with_longest_codes(row).suffix))

    def _prompt(self, prefix: str) -> list[int]:
        if prefix not in self._prompts:
            self._prompts[prefix] = self._processor.prompt_ids(prefix)
        return self._prompts[prefix]

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """int32 [B, longest], right-padded with 0, and int32 [B]."""
        lengths = np.array([len(row) for row in ids], np.int32)
        longest = -(-int(lengths.max()) // self.options.multiple) * self.options.multiple
        padded = np.zeros((len(ids), longest), np.int32)
        for number, row in enumerate(ids):
            padded[number, : len(row)] = row
        return padded, lengths
