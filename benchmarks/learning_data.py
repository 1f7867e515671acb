"""Folders of data for benchmarks/learning.py, made of the demo's scenes: one format for each task."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from demo import scenes
from demo.scenes import TEST_SEEDS, TRAIN_SEEDS, VALIDATION_SEEDS, Scene, make_scene
from demo.tasks import GRID, caption

TEST = 100
"""Held-out scenes."""
VALIDATION = 60
SHAPES = ("circle", "square", "triangle", "star", "cross")


def splits(count: int, first: int = 500_000) -> Iterator[tuple[str, list[int]]]:
    """Seeds by the name of their split; the demo itself was trained on seeds from the same range's beginning."""
    yield "train", list(TRAIN_SEEDS[first : first + 4 * count])
    yield "valid", list(VALIDATION_SEEDS[first // 10 : first // 10 + 4 * VALIDATION])
    yield "test", list(TEST_SEEDS[: 4 * TEST])


def _wanted(split: str, count: int) -> int:
    return {"train": count, "valid": VALIDATION, "test": TEST}[split]


def _rows(folder: Path, count: int, answer: Callable[[Scene], str | None], prefix: str) -> None:
    """Roboflow's JSONL, one file a split."""
    folder.mkdir(parents=True)
    for split, seeds in splits(count):
        lines = []
        for seed in seeds:
            scene = make_scene(seed)
            suffix = answer(scene)
            if suffix is None:
                continue
            name = f"{split}-{seed}.png"
            scene.image.save(folder / name)
            lines.append(json.dumps({"image": name, "prefix": prefix, "suffix": suffix}))
            if len(lines) == _wanted(split, count):
                break
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def largest(folder: Path, count: int) -> None:
    """The prompt "largest en", which the demo never saw, and the answer "blue circle". The largest shape has at least a
    fifth more area than the next."""

    def answer(scene: Scene) -> str | None:
        areas = sorted(((int(item.mask.sum()), item.name) for item in scene.items), reverse=True)
        if len(areas) > 1 and areas[0][0] < 1.2 * areas[1][0]:
            return None
        return areas[0][1]

    _rows(folder, count, answer, "largest en")


def captions(folder: Path, count: int = 600) -> None:
    """ "caption en": an old skill of the demo."""
    _rows(folder, count, caption, "caption en")


def hearts(folder: Path, count: int) -> None:
    """COCO boxes of a sixth shape, "heart", beside the five that the demo knows; some pictures have none."""
    before = scenes.SHAPES, scenes._polar
    scenes.SHAPES, scenes._polar = (*SHAPES, "heart", "heart"), _with_heart  # type: ignore[assignment]
    try:
        _coco(folder, count, ("heart",), polygons=False)
    finally:
        scenes.SHAPES, scenes._polar = before


def outlines(folder: Path, count: int) -> None:
    """COCO polygons of single shapes, all of one class, "object". The demo was asked for shapes by colour and name
    ("segment red circle"), never like this."""
    _coco(folder, count, ("object",), polygons=True)


def _with_heart(shape: str) -> list[tuple[float, float]]:
    if shape != "heart":
        return _POLAR(shape)
    turns = [2 * math.pi * k / 40 for k in range(40)]
    points = [
        (16 * math.sin(t) ** 3 / 13, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t)) / 13)
        for t in turns
    ]
    return [(math.atan2(y, x), math.hypot(x, y)) for x, y in points]


_POLAR = scenes._polar


def _coco(folder: Path, count: int, names: Sequence[str], polygons: bool) -> None:
    """COCO's instances.json, a folder a split."""
    for split, seeds in splits(count):
        place = folder / split
        place.mkdir(parents=True)
        data: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
        data["categories"] = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
        for seed in seeds:
            scene = make_scene(seed, count=1) if polygons else make_scene(seed)
            chosen = [item for item in scene.items if polygons or item.shape in names]
            if not chosen and seed % 4:
                continue
            number, width, height = len(data["images"]) + 1, *scene.image.size
            file = f"{seed}.png"
            scene.image.save(place / file)
            data["images"].append({"id": number, "file_name": file, "width": width, "height": height})
            for item in chosen:
                x0, y0, x1, y1 = (round(side * GRID) / GRID for side in item.box)  # as the demo says places
                box = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]
                one = {
                    "id": len(data["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": box,
                    "iscrowd": 0,
                }
                one["area"] = box[2] * box[3]
                if polygons:
                    one["segmentation"] = [_outline(item.mask)]
                data["annotations"].append(one)
            if len(data["images"]) == _wanted(split, count):
                break
        (place / "_annotations.coco.json").write_text(json.dumps(data))


def _outline(mask: np.ndarray) -> list[float]:
    """x, y, x, y, ... around the True pixels of a shape that each ray from its middle leaves once, as a person would
    click it: 48 points."""
    ys, xs = np.nonzero(mask)
    middle = np.array([xs.mean(), ys.mean()])
    angles = np.arctan2(ys - middle[1], xs - middle[0])
    reach = np.hypot(xs - middle[0], ys - middle[1])
    points: list[float] = []
    for number in range(48):
        angle = -math.pi + 2 * math.pi * (number + 0.5) / 48
        near = np.abs((angles - angle + math.pi) % (2 * math.pi) - math.pi) < math.pi / 48
        if near.any():
            far = reach[near].max() + 0.5
            points += [float(middle[0] + 0.5 + far * math.cos(angle)), float(middle[1] + 0.5 + far * math.sin(angle))]
    return points
