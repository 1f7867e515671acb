"""How good answers are: exact match, detection mAP (pycocotools), recall, precision, and the IoU of masks."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ..regions import Region
from ..regions.reader import read_answer
from .coco_eval import ClassScores, Detections, evaluate
from .example import Example

METRICS = ("exact", "map", "iou")


def possible_metrics() -> tuple[str, ...]:
    """Those of METRICS that can be computed here: "map" needs pycocotools."""
    known = importlib.util.find_spec("pycocotools") is not None
    return tuple(name for name in METRICS if known or name != "map")


@dataclass(frozen=True)
class Predicted:
    """An example, and what the model predicted."""

    example: Example
    text: str
    regions: Sequence[Region] | None = None
    """The answer's regions, with scores and masks, where generation has made them; else they are read from the text."""


@dataclass(frozen=True)
class Scores:
    """Figures in 0..1; None where the answers have none of the kind."""

    rows: int
    exact: float | None = None
    """The share of answers that are right as a whole: see `is_exact`."""
    exact_by_kind: dict[str, float] = field(default_factory=dict)
    map: float | None = None
    """COCO's AP: boxes, mean over IoU .50 to .95 and over classes."""
    map50: float | None = None
    """COCO's AP at IoU .50."""
    recall50: float | None = None
    """The share of objects that a box of the same class meets with an IoU of at least .50."""
    precision50: float | None = None
    """The share of boxes that meet such an object."""
    mask_iou: float | None = None
    """Mean over the objects with masks: the IoU of each with its mask in the answer, 0 where there is none."""
    by_class: dict[str, ClassScores] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For JSON, rounded to six places."""
        return {key: _rounded(value) for key, value in asdict(self).items() if value not in (None, {})}

    def lines(self) -> list[str]:
        """A table to print: the figures, and a row for each class."""
        means = {
            "exact": self.exact,
            **{f"exact, {kind}": value for kind, value in self.exact_by_kind.items() if len(self.exact_by_kind) > 1},
            **{"mAP": self.map, "mAP at IoU .5": self.map50, "recall at IoU .5": self.recall50},
            **{"precision at IoU .5": self.precision50, "mask IoU": self.mask_iou},
        }
        lines = [f"{name:<20} {value:.3f}" for name, value in means.items() if value is not None]
        if self.by_class:
            width = max(5, *map(len, self.by_class))
            head = ("objects", "boxes", "AP", "AP50", "recall", "precision")
            lines.append(f"{'class':<{width}}" + "".join(f"{name:>10}" for name in head))
            for name, one in self.by_class.items():
                figures = map(_shown, (one.ap, one.ap50, one.recall50, one.precision50))
                cells = (str(one.objects), str(one.boxes), *figures)
                lines.append(f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells))
        return lines


def score(
    predicted: Sequence[Predicted],
    metrics: Sequence[str] = METRICS,
    mask_decoder: Callable[[Any], Any] | None = None,
) -> Scores:
    """The scores of answers. mask_decoder: for masks that are given as codes only, in an answer or in the data.

    "map" needs pycocotools where there are rows of boxes, and raises InputError without it.
    """
    exact: dict[str, list[bool]] = defaultdict(list)
    for one in predicted:
        exact[one.example.kind].append(is_exact(one.example, one.text))
    every = [value for values in exact.values() for value in values]
    scores: dict[str, Any] = {"rows": len(predicted)}
    if "exact" in metrics and every:
        scores["exact"] = sum(every) / len(every)
        scores["exact_by_kind"] = {kind: sum(values) / len(values) for kind, values in exact.items()}
    boxed = [one for one in predicted if one.example.kind != "text" and one.example.image_size]
    if "map" in metrics and boxed:
        found = evaluate(detections(boxed))
        scores |= {"map": found.ap, "map50": found.ap50, "recall50": found.recall50}
        scores |= {"precision50": found.precision50, "by_class": found.by_class}
    if "iou" in metrics:
        ious = [iou for one in boxed if one.example.kind == "segment" for iou in mask_ious(one, mask_decoder)]
        scores["mask_iou"] = sum(ious) / len(ious) if ious else None
    return Scores(**scores)


def is_exact(example: Example, text: str) -> bool:
    """Whether an answer is right as a whole.

    In words: equal but for the case of letters and for space. Boxes and masks: the same records (tokens and labels,
    compared like words), in any order.
    """
    if example.kind == "text":
        return _plain(example.suffix) == _plain(text)
    return _records(example.suffix) == _records(text)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _records(text: str) -> Counter[str]:
    return Counter(filter(None, map(_plain, text.split(";"))))


def _regions(one: Predicted, mask_decoder: Callable[[Any], Any] | None = None) -> Sequence[Region]:
    if one.regions is not None:
        return one.regions
    assert one.example.image_size is not None
    return read_answer(one.text, one.example.image_size, mask_decoder)[0]


def detections(predicted: Sequence[Predicted]) -> Detections:
    """True and found boxes. Rows of one picture are put together, as a detector sees all classes at once.

    A box that the answer gives for a class that no example has counts as wrong for none of them.
    """
    labels = dict.fromkeys(obj.label for one in predicted for obj in one.example.objects)
    data = Detections(classes=tuple(labels))
    numbers: dict[Any, int] = {}
    for one in predicted:
        image = one.example.image if isinstance(one.example.image, str) else id(one.example.image)
        size = one.example.image_size
        assert size is not None
        number = numbers.setdefault(image, len(numbers) + 1)
        data.sizes[number] = size
        data.truth += [(number, obj.label, obj.box) for obj in one.example.objects]
        data.found += [(number, found.label, found.box, found.score) for found in _regions(one)]
    return data


def mask_ious(one: Predicted, mask_decoder: Callable[[Any], Any] | None = None) -> list[float]:
    """For each true object with a mask the IoU with its mask in the answer: of the same class, the best pairs first.

    0 for an object without a partner. Boxes too many in the answer do not count here; precision has them.
    """
    size = one.example.image_size
    assert size is not None
    truth = [(obj.label, obj.mask.bitmap()) for obj in one.example.objects if obj.mask]
    if not truth and mask_decoder is not None:  # data that holds codes only
        known = read_answer(one.example.suffix, size, mask_decoder)[0]
        truth = [(region.label, region.mask) for region in known if region.mask is not None]
    found = [(region.label, mask) for region in _regions(one, mask_decoder) if (mask := region.mask) is not None]
    pairs = [
        (_mask_iou(mine, theirs), row, column)
        for row, (label, mine) in enumerate(truth)
        for column, (other, theirs) in enumerate(found)
        if label == other
    ]
    best, taken = [0.0] * len(truth), set[int]()
    paired: set[int] = set()
    for iou, row, column in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if row not in paired and column not in taken:
            best[row] = iou
            paired.add(row)
            taken.add(column)
    return best


def _mask_iou(one: np.ndarray, other: np.ndarray) -> float:
    union = np.logical_or(one, other).sum()
    return float(np.logical_and(one, other).sum() / union) if union else 0.0


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return value


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
