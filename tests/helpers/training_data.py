"""Small datasets of the demo's scenes in every format that is read, with the same labels in each."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from demo.scenes import SHAPES, make_scene
from helpers.pictures import saved
from pg_mlx.regions import Region
from pg_mlx.training.example import LabelledObject
from pg_mlx.training.masks import Mask
from pg_mlx.training.regions import answer_text, in_order


@dataclass(frozen=True)
class Labelled:
    """A picture with the outlines of its objects, and their truth as COCO fills them."""

    image: Image.Image
    name: str
    png: bytes
    outlines: tuple[tuple[float, ...], ...]
    objects: tuple[LabelledObject, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.image.size


@functools.cache
def labelled_scenes(count: int, scale: float = 1.0, first: int = 5_000_000) -> tuple[Labelled, ...]:
    """The first scenes from a seed on, of some 224 px times `scale`. Those with a text are left out where this machine
    lacks the fonts."""
    scenes: list[Labelled] = []
    seed = first
    while len(scenes) < count:
        try:
            scene = make_scene(seed, scale)
        except SystemExit:
            scene = None
        seed += 1
        if scene is None:
            continue
        outlines = tuple(outline(item.mask) for item in scene.items)
        masks = [Mask.from_polygons([points], scene.image.size) for points in outlines]
        objects = tuple(
            LabelledObject(item.shape, box, mask)
            for item, mask in zip(scene.items, masks, strict=True)
            if (box := mask.box()) is not None
        )
        if any(2 * mask.bitmap().sum() < item.mask.sum() for mask, item in zip(masks, scene.items, strict=True)):
            continue  # an object in two pieces, of which an outline has one
        scenes.append(Labelled(scene.image, f"{len(scenes):03}.png", saved(scene.image), outlines, objects))
    return tuple(scenes)


def outline(mask: np.ndarray) -> tuple[float, ...]:
    """The outer edge of what is True in bool [H, W], along the edges of pixels: x, y, x, y, ... from one corner on."""
    mask = np.pad(mask, 1)
    row = int(np.flatnonzero(mask.any(axis=1))[0])
    column = int(np.flatnonzero(mask[row])[0])
    start = (column, row)
    x, y, dx, dy = column, row, 1, 0  # the object is on the right hand
    points: list[float] = []
    while True:
        points += [float(x - 1), float(y - 1)]
        left, right = True, True
        while right:
            x, y = x + dx, y + dy
            left, right = (bool(mask[_ahead(x, y, dx, dy, side)]) for side in (-1, 1))
            if left:
                break
        dx, dy = (dy, -dx) if left else (-dy, dx)
        if (x, y) == start:
            return tuple(points)


def _ahead(x: int, y: int, dx: int, dy: int, side: int) -> tuple[int, int]:
    """row, column of the pixel ahead of the corner (x, y), seen in direction dx, dy: on the left (-1) or right (1)."""
    return y + (dy + side * dx - 1) // 2, x + (dx - side * dy - 1) // 2


def objects_of(regions: Sequence[Region]) -> tuple[LabelledObject, ...]:
    """Regions of an answer as objects without masks."""
    return tuple(LabelledObject(region.label, region.box) for region in regions)


# --- writers, one a format -----------------------------------------------------------------------------


def save_pictures(folder: Path, scenes: tuple[Labelled, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        (folder / scene.name).write_bytes(scene.png)


def prefix_of(task: str = "detect") -> str:
    return f"{task} {' ; '.join(SHAPES)}"


def answer_of(scene: Labelled) -> str:
    """Boxes only."""
    objects = in_order(scene.objects, SHAPES, scene.size)
    return answer_text(objects, scene.size, [None] * len(objects))


def roboflow_rows(folder: Path, scenes: tuple[Labelled, ...], split: str = "train") -> Path:
    """The new layout: {split}/annotations.jsonl."""
    save_pictures(folder / split, scenes)
    rows = [{"image": scene.name, "prefix": prefix_of(), "suffix": answer_of(scene)} for scene in scenes]
    return write_lines(folder / split / "annotations.jsonl", rows)


def big_vision_rows(folder: Path, scenes: tuple[Labelled, ...]) -> Path:
    """Flat keys without a prompt, pictures in a folder of their own."""
    save_pictures(folder / "pictures", scenes)
    return write_lines(folder / "data.jsonl", [{"image": s.name, "suffix": answer_of(s)} for s in scenes])


def messages_rows(folder: Path, scenes: tuple[Labelled, ...]) -> Path:
    save_pictures(folder, scenes)
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prefix_of()}]},
                {"role": "assistant", "content": answer_of(scene)},
            ],
            "images": [scene.name],
        }
        for scene in scenes
    ]
    return write_lines(folder / "train.jsonl", rows)


def coco(folder: Path, scenes: tuple[Labelled, ...], form: str) -> Path:
    """form: "box", "polygon", "rle" (compressed) or "runs" (uncompressed)."""
    save_pictures(folder, scenes)
    images, annotations = [], []
    for number, scene in enumerate(scenes):
        width, height = scene.size
        images.append({"id": number, "file_name": scene.name, "width": width, "height": height})
        for one, points in zip(scene.objects, scene.outlines, strict=True):
            left, top, right, bottom = one.box
            record = {"id": len(annotations) + 1, "image_id": number, "category_id": SHAPES.index(one.label) + 1}
            record |= {"iscrowd": 0, "area": 1}
            if form == "box":
                record["bbox"] = [left, top, right - left, bottom - top]
            elif form == "polygon":
                record["segmentation"] = [list(points)]
            elif form == "rle":
                record["segmentation"] = {"size": [height, width], "counts": one.mask.counts}
            else:
                record["segmentation"] = {"size": [height, width], "counts": runs(one.mask.bitmap())}
            annotations.append(record)
    group = [{"id": 0, "name": "shapes", "supercategory": "none"}]  # as Roboflow writes it
    categories = [{"id": n, "name": name, "supercategory": "shapes"} for n, name in enumerate(SHAPES, 1)]
    content = {"images": images, "annotations": annotations, "categories": group + categories}
    return write_json(folder / "_annotations.coco.json", content)


def coco_captions(folder: Path, scenes: tuple[Labelled, ...]) -> Path:
    save_pictures(folder, scenes)
    images = [{"id": str(number), "file_name": scene.name} for number, scene in enumerate(scenes)]
    notes = [{"id": n, "image_id": str(n), "caption": f"{len(s.objects)} shapes\n"} for n, s in enumerate(scenes)]
    return write_json(folder / "captions.json", {"images": images, "annotations": notes})


def via(folder: Path, scenes: tuple[Labelled, ...]) -> Path:
    """A project with the classes in its attributes."""
    save_pictures(folder, scenes)
    records = {
        f"{scene.name}123": {"filename": scene.name, "size": 123, "regions": via_regions(scene)} for scene in scenes
    }
    attributes = {"region": {"shape": {"type": "dropdown", "options": dict.fromkeys(SHAPES, "")}}, "file": {}}
    content = {"_via_settings": {}, "_via_img_metadata": records, "_via_attributes": attributes}
    return write_json(folder / "via_project.json", content)


def via_csv(folder: Path, scenes: tuple[Labelled, ...]) -> Path:
    save_pictures(folder, scenes)
    path = folder / "via.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        keys = ("region_count", "region_id", "region_shape_attributes", "region_attributes")
        writer.writerow(["filename", "file_size", "file_attributes", *keys])
        for scene in scenes:
            regions = via_regions(scene)
            for number, region in enumerate(regions):
                cells = [json.dumps(region[key]) for key in ("shape_attributes", "region_attributes")]
                writer.writerow([scene.name, 123, "{}", len(regions), number, *cells])
    return path


def via_regions(scene: Labelled) -> list[dict]:
    return [
        {
            "shape_attributes": {"name": "polygon", "all_points_x": points[::2], "all_points_y": points[1::2]},
            "region_attributes": {"shape": one.label},
        }
        for one, points in zip(scene.objects, scene.outlines, strict=True)
    ]


def texts(folder: Path, scenes: tuple[Labelled, ...]) -> Path:
    save_pictures(folder, scenes)
    for scene in scenes:
        (folder / scene.name).with_suffix(".txt").write_text(f"{len(scene.objects)} shapes\n")
    return folder


def runs(bitmap: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths of bool [H, W]."""
    flat = bitmap.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path
