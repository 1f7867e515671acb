"""Choosing among regions: by score, by overlap and by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from .region import Box, Region


@dataclass(frozen=True)
class RegionFilter:
    """Which regions are kept. Better is the higher score, and where scores are equal or unknown the one that came
    first. Raises InputError for values out of range."""

    min_score: float | None = None
    """0 to 1: drops regions with a lower score. One without a score stays."""
    dedup_iou: float | None = None
    """0 to 1: of two regions with one label whose boxes overlap by at least this (intersection over union), only the
    better one stays."""
    max_regions: int | None = None
    """Only so many regions stay, the best ones; 0 or more."""

    def __post_init__(self) -> None:
        for name, value in (("min_score", self.min_score), ("dedup_iou", self.dedup_iou)):
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{name} is {value}, but must be from 0 to 1")
        if self.max_regions is not None and self.max_regions < 0:
            raise InputError(f"max_regions is {self.max_regions}, but must be 0 or more")

    def enough(self, constrain: bool, scores: bool) -> int | None:
        """With so many regions a constrained answer may end; None if it must not end early.

        It may if only their order decides which regions are kept: without scores and without dedup_iou.
        """
        return self.max_regions if constrain and not scores and self.dedup_iou is None else None

    def select(self, regions: Sequence[Region]) -> list[Region]:
        """The regions that are kept, in their order."""
        ranked = sorted(enumerate(regions), key=lambda pair: (-(pair[1].score or 0.0), pair[0]))
        kept: list[tuple[int, Region]] = []
        for index, region in ranked:
            if len(kept) == self.max_regions:
                break
            if self.min_score is not None and region.score is not None and region.score < self.min_score:
                continue
            if self.dedup_iou is not None and any(_same(region, other, self.dedup_iou) for _, other in kept):
                continue
            kept.append((index, region))
        return [region for _, region in sorted(kept, key=lambda pair: pair[0])]


def select(
    regions: Sequence[Region],
    *,
    min_score: float | None = None,
    dedup_iou: float | None = None,
    max_regions: int | None = None,
) -> list[Region]:
    """RegionFilter(...).select(regions), in one call."""
    return RegionFilter(min_score, dedup_iou, max_regions).select(regions)


def _same(region: Region, other: Region, dedup_iou: float) -> bool:
    return region.label == other.label and iou(region.box_normalized, other.box_normalized) >= dedup_iou


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes of positive size."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    return both / (_area(a) + _area(b) - both)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
