"""From an answer, finished or not, to regions complete with masks and scores."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .parser import RegionParser
from .region import Malformed, Region

Logged = Sequence[tuple[str, float | None]]
"""For each token, the text that became final with it and its log-probability (None if it was forced). The texts
together are the answer."""


def read_answer(
    text: str,
    image_size: tuple[int, int],
    mask_decoder: Callable[[Any], Any] | None = None,
    logged: Logged = (),
) -> tuple[list[Region], list[Malformed]]:
    """The regions of an answer, and its malformed records.

    image_size: width and height of the picture in pixels. mask_decoder: a MaskDecoder, called once for all masks; it
    may return None. logged: the source of scores, if it has log-probabilities. Raises InputError as RegionParser.
    """
    parser, scores = RegionParser(image_size), _Scores()
    for piece, logprob in logged:
        scores.add(piece, logprob)
    regions = scores.of([*parser.push(text), *parser.flush()])
    return (_with_masks(regions, mask_decoder) if mask_decoder else regions), parser.malformed


class AnswerReader:
    """As read_answer, for an answer that comes token by token: each region once its record is complete."""

    def __init__(self, image_size: tuple[int, int], mask_decoder: Callable[[Any], Any] | None = None):
        self._parser, self._mask_decoder = RegionParser(image_size), mask_decoder
        self._scores = _Scores()

    @property
    def malformed(self) -> list[Malformed]:
        """The malformed records so far."""
        return self._parser.malformed

    def push(self, text: str, logprob: float | None = None) -> list[Region]:
        """The regions that became complete with the text of one more token."""
        self._scores.add(text, logprob)
        return self._finished(self._parser.push(text))

    def flush(self) -> list[Region]:
        """The region that ended with the answer, if one did."""
        return self._finished(self._parser.flush())

    def _finished(self, regions: list[Region]) -> list[Region]:
        if not regions:
            return []
        regions = self._scores.of(regions)
        return _with_masks(regions, self._mask_decoder) if self._mask_decoder else regions


def _with_masks(regions: list[Region], mask_decoder: Callable[[Any], Any]) -> list[Region]:
    """The regions, those with codes with their masks, if the decoder makes any."""
    codes = [region.codes for region in regions if region.codes]
    decoded = mask_decoder(codes) if codes else None
    if decoded is None:
        return regions
    import numpy as np

    masks = iter(np.array(decoded))
    return [replace(region, decoded=next(masks)) if region.codes else region for region in regions]


class _Scores:
    """Scores of regions, from the log-probabilities of the answer's tokens. A token belongs to the record in which its
    text begins; one that only begins a character, to the record of that character."""

    def __init__(self) -> None:
        self._length = 0
        self._starts: list[int] = []
        self._logprobs: list[float] = []
        """Those of tokens that were chosen, which begin at these places in the text."""

    def add(self, text: str, logprob: float | None) -> None:
        if logprob is not None:
            self._starts.append(self._length)
            self._logprobs.append(logprob)
        self._length += len(text)

    def of(self, regions: list[Region]) -> list[Region]:
        """The regions with the geometric mean of their tokens' probabilities; as they are if that is not known."""
        scored = []
        for region in regions:
            first, behind = (bisect_left(self._starts, place) for place in region.span)
            own = self._logprobs[first:behind]
            scored.append(replace(region, score=math.exp(sum(own) / len(own))) if own else region)
        return scored
