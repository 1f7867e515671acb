"""Regions as other programs want them: plain JSON, COCO's results and annotations, the arrays of `supervision`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .region import Malformed, Region

if TYPE_CHECKING:
    import numpy as np


def to_json(region: Region) -> dict[str, Any]:
    """A region for JSON. box: x0, y0, x1, y1 in pixels. mask: None, or COCO's run lengths over the whole picture."""
    return {
        "label": region.label,
        "box": list(region.box),
        "box_normalized": list(region.box_normalized),
        "score": region.score,
        "mask": _rle(region),
    }


def malformed_to_json(malformed: Malformed) -> dict[str, str]:
    """A malformed record for JSON: its text, and why it is malformed."""
    return {"text": malformed.text, "reason": malformed.reason}


def to_coco(region: Region, image_id: int, category_id: int, file_name: str) -> dict[str, Any]:
    """One entry of a COCO results file. `label` and `file_name` are our additions, so that other ids can be assigned.

    score: 1.0 where none was computed, since COCO's evaluation needs one.
    """
    entry = {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": _bbox(region),
        "score": 1.0 if region.score is None else region.score,
        "label": region.label,
        "file_name": file_name,
    }
    mask = _rle(region)
    return entry if mask is None else {**entry, "segmentation": mask}


def to_annotation(region: Region, id: int, image_id: int, category_id: int) -> dict[str, Any]:
    """One annotation of a COCO data set. area: the pixels of the mask, or of the box where there is none. `label`, and
    `score` if it is known, are our additions."""
    bbox, mask = _bbox(region), region.mask
    entry = {
        "id": id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": float(bbox[2] * bbox[3] if mask is None else mask.sum()),
        "iscrowd": 0,
        "label": region.label,
    }
    if region.score is not None:
        entry["score"] = region.score
    if mask is not None:
        entry["segmentation"] = _rle(region)
    return entry


def _bbox(region: Region) -> list[float]:
    x0, y0, x1, y1 = region.box
    return [x0, y0, x1 - x0, y1 - y0]


def arrays(regions: Sequence[Region], labels: Sequence[str] | None = None) -> dict[str, Any]:
    """The arguments of supervision.Detections, for `Detections(**arrays(regions))`.

    xyxy: float32 [regions, 4] in pixels. mask: bool [regions, H, W], or None if no region has one (otherwise all False
    for a region without). confidence: float32 [regions], or None if not every region has a score. class_id: int
    [regions], positions in `labels`, which are by default the labels found, in the order in which they first appear; -1
    for a label that is not in `labels`. data: {"class_name": str [regions]}.
    """
    import numpy as np

    names = list(labels) if labels is not None else list(dict.fromkeys(region.label for region in regions))
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    scores = [region.score for region in regions if region.score is not None]
    return {
        "xyxy": np.array([region.box for region in regions], np.float32).reshape(-1, 4),
        "mask": _stacked(regions),
        "confidence": np.array(scores, np.float32) if regions and len(scores) == len(regions) else None,
        "class_id": np.array([places.get(region.label, -1) for region in regions], int),
        "data": {"class_name": np.array([region.label for region in regions], str)},
    }


def _stacked(regions: Sequence[Region]) -> np.ndarray | None:
    if all(region.decoded is None for region in regions):
        return None
    import numpy as np

    width, height = regions[0].image_size
    stack = np.zeros((len(regions), height, width), bool)
    for row, region in zip(stack, regions, strict=True):
        mask = region.mask
        if mask is not None:
            row[...] = mask
    return stack


def _rle(region: Region) -> Any:
    mask = region.mask
    if mask is None:
        return None
    from .rle import encode

    return encode(mask)
