"""COCO's evaluation of boxes, by pycocotools itself."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .masks import Box, coco_masks


@dataclass(frozen=True)
class ClassScores:
    """Figures of one class, in 0..1; None where the class has no object, or no box was found."""

    objects: int
    boxes: int
    """Boxes of the class that were found."""
    ap: float | None = None
    ap50: float | None = None
    recall50: float | None = None
    precision50: float | None = None


@dataclass(frozen=True)
class BoxScores:
    """Figures of all classes: COCO's means, and recall and precision over all objects and boxes."""

    ap: float | None
    ap50: float | None
    recall50: float | None
    precision50: float | None
    by_class: dict[str, ClassScores]


@dataclass
class Detections:
    """True and found boxes of pictures."""

    classes: tuple[str, ...]
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Width and height by the number of the picture, from 1."""
    truth: list[tuple[int, str, Box]] = field(default_factory=list)
    """picture, label, box."""
    found: list[tuple[int, str, Box, float | None]] = field(default_factory=list)
    """picture, label, box, score (1 where it is None)."""

    def coco_truth(self) -> dict[str, Any]:
        """As a COCO instances file."""
        ids = self._ids()
        images = [{"id": number, "width": w, "height": h} for number, (w, h) in self.sizes.items()]
        annotations = []
        for number, (image, label, (left, top, right, bottom)) in enumerate(self.truth, 1):
            width, height = right - left, bottom - top
            place = {"bbox": [left, top, width, height], "area": width * height, "iscrowd": 0}
            annotations.append({"id": number, "image_id": image, "category_id": ids[label], **place})
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    def coco_results(self) -> list[dict[str, Any]]:
        """As a COCO results file; boxes of labels that are no class are left out."""
        ids = self._ids()
        return [
            {
                "image_id": image,
                "category_id": ids[label],
                "bbox": [left, top, right - left, bottom - top],
                "score": 1.0 if score is None else score,
            }
            for image, label, (left, top, right, bottom), score in self.found
            if label in ids
        ]

    def _ids(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes, 1)}


def evaluate(data: Detections) -> BoxScores:
    """COCOeval of the boxes. Raises InputError without pycocotools."""
    coco_masks()
    if not data.truth:
        return BoxScores(None, None, None, None if not data.found else 0.0, {})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = _evaluated(data)
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # [IoU, recall, class] of all sizes, 100 boxes a picture
    by_class, hits, objects = {}, 0, 0
    for number, name in enumerate(data.classes):
        matched, of_class, boxes = _matches(evaluation, number)
        hits, objects = hits + matched, objects + of_class
        by_class[name] = ClassScores(
            of_class,
            boxes,
            _mean(precision[:, :, number]),
            _mean(precision[0, :, number]),
            matched / of_class if of_class else None,
            matched / boxes if boxes else None,
        )
    found = len(data.found)  # those of unknown labels are wrong, too
    return BoxScores(_mean(precision), _mean(precision[0]), hits / objects, hits / found if found else None, by_class)


def _evaluated(data: Detections) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = data.coco_truth()
    truth.createIndex()
    results = data.coco_results()
    found = truth.loadRes(results) if results else COCO()
    evaluation = COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _matches(evaluation: Any, number: int) -> tuple[int, int, int]:
    """Objects of a class that are met at IoU .5, objects, and boxes of the class."""
    params = evaluation.params
    images, areas = len(params.imgIds), len(params.areaRng)
    start = number * areas * images  # [class, area, picture]; area 0 is all
    entries = [one for one in evaluation.evalImgs[start : start + images] if one is not None]
    matched = sum(int((one["gtMatches"][0] > 0).sum()) for one in entries)
    return matched, sum(len(one["gtIds"]) for one in entries), sum(len(one["dtIds"]) for one in entries)


def _mean(precision: np.ndarray) -> float | None:
    """COCO's mean of precisions, of which -1 are none."""
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None
