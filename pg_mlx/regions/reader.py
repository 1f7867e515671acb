"""From an answer, finished or not, to regions complete with masks and scores."""

from __future__ import annotations

import math
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
    parser = RegionParser(image_size)
    regions = [*parser.push(text), *parser.flush()]
    regions = _scored(regions, logged)
    return (_with_masks(regions, mask_decoder) if mask_decoder else regions), parser.malformed


class AnswerReader:
    """As read_answer, for an answer that comes token by token: each region once its record is complete."""

    def __init__(self, image_size: tuple[int, int], mask_decoder: Callable[[Any], Any] | None = None):
        self._parser, self._mask_decoder = RegionParser(image_size), mask_decoder
        self._logged: list[tuple[str, float | None]] = []

    @property
    def malformed(self) -> list[Malformed]:
        """The malformed records so far."""
        return self._parser.malformed

    def push(self, text: str, logprob: float | None = None) -> list[Region]:
        """The regions that became complete with the text of one more token."""
        self._logged.append((text, logprob))
        return self._finished(self._parser.push(text))

    def flush(self) -> list[Region]:
        """The region that ended with the answer, if one did."""
        return self._finished(self._parser.flush())

    def _finished(self, regions: list[Region]) -> list[Region]:
        if not regions:
            return []
        regions = _scored(regions, self._logged)
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


def _scored(regions: list[Region], logged: Logged) -> list[Region]:
    """A token belongs to the record in which its text begins; one that only begins a character, with that character."""
    starts, logprobs, position = list[int](), list[float](), 0
    for piece, logprob in logged:
        if logprob is not None:
            starts.append(position)
            logprobs.append(logprob)
        position += len(piece)
    scored = []
    for region in regions:
        first, behind = region.span
        own = [logprob for start, logprob in zip(starts, logprobs, strict=True) if first <= start < behind]
        scored.append(replace(region, score=math.exp(sum(own) / len(own))) if own else region)
    return scored
