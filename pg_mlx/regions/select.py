"""Fewer regions: the sure ones, no object twice, and not too many."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from .region import Box, Region


def select(
    regions: Sequence[Region],
    *,
    min_score: float | None = None,
    dedup_iou: float | None = None,
    max_regions: int | None = None,
) -> list[Region]:
    """What is left of the regions, in their order.

    min_score: drops those with a lower score; one without a score stays. dedup_iou: of two regions with one label whose
    boxes overlap by at least this (intersection over union), only the better one stays. max_regions: only so many stay,
    the best ones. Better is the higher score, and where scores are equal or unknown the one that came first.
    Raises InputError for values out of range.
    """
    for name, value in (("min_score", min_score), ("dedup_iou", dedup_iou)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name} is {value}, but must be from 0 to 1")
    if max_regions is not None and max_regions < 0:
        raise InputError(f"max_regions is {max_regions}, but must be 0 or more")
    ranked = sorted(enumerate(regions), key=lambda pair: (-(pair[1].score or 0.0), pair[0]))
    kept: list[tuple[int, Region]] = []
    for index, region in ranked:
        if len(kept) == max_regions:
            break
        if min_score is not None and region.score is not None and region.score < min_score:
            continue
        if dedup_iou is not None and any(_same(region, other, dedup_iou) for _, other in kept):
            continue
        kept.append((index, region))
    return [region for _, region in sorted(kept, key=lambda pair: pair[0])]


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
