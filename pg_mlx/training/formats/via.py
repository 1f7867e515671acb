"""VGG Image Annotator: its JSON (a project, or annotations alone) and its CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from typing import Any

from ...errors import InputError
from ..example import LabelledObject
from ..faults import Faults
from ..masks import Mask
from .lines import read_text
from .objects import labelled, numbers
from .pictures import Pictures, picture_path
from .source import Contents, DataOptions, DataSource, Format, LabelledPicture

_LABEL_KEYS = ("label", "name", "class", "category", "type")
"""Attributes that are the label, where a region has several."""
_CORNERS = 64
"""How many corners the polygon has that stands for a circle or an ellipse."""

Picture = tuple[str, str, list[tuple[str, Any, Any]]]
"""where, file name, and of each region: where, shape attributes, region attributes."""


def _is_json(source: DataSource) -> bool:
    content = source.content
    if not isinstance(content, dict):
        return False
    records = content.get("_via_img_metadata", content)
    return isinstance(records, dict) and any(
        isinstance(record, dict) and {"filename", "regions"} <= set(record) for record in records.values()
    )


def _read_json(source: DataSource, options: DataOptions, pictures: Pictures, faults: Faults) -> Contents:
    records = source.content.get("_via_img_metadata", source.content)
    found: list[Picture] = []
    for key, record in records.items():
        where = f"{source.path}: {str(key)[:60]}"
        if not isinstance(record, dict):
            faults.add(where, "it is no object with filename and regions")
            continue
        regions = record.get("regions", [])
        regions = list(regions.values()) if isinstance(regions, dict) else regions  # VIA 1
        if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
            faults.add(where, "regions is no list of objects")
            continue
        places = [
            (f"{where}: regions[{number}]", region.get("shape_attributes"), region.get("region_attributes"))
            for number, region in enumerate(regions)
        ]
        found.append((where, record.get("filename", ""), places))
    return _reading(found, source, options, pictures, faults)


def _is_csv(source: DataSource) -> bool:
    if source.path.suffix.lower() != ".csv" or not source.path.is_file():
        return False
    return "region_shape_attributes" in read_text(source.path).partition("\n")[0]


def _read_csv(source: DataSource, options: DataOptions, pictures: Pictures, faults: Faults) -> Contents:
    reader = csv.DictReader(io.StringIO(read_text(source.path)))
    found: dict[str, Picture] = {}
    try:
        for row in reader:
            where = f"{source.path}:{reader.line_num}"
            name = row.get("#filename") or row.get("filename") or ""
            picture = found.setdefault(name, (where, name, []))
            with faults.at(where):
                shape, attributes = (_cell(row, key) for key in ("region_shape_attributes", "region_attributes"))
                if shape:
                    picture[2].append((where, shape, attributes))
    except csv.Error as error:
        faults.add(f"{source.path}:{reader.line_num}", f"it is not valid CSV: {error}")
    return _reading(list(found.values()), source, options, pictures, faults)


def _cell(row: dict[str, str], key: str) -> Any:
    try:
        return json.loads(row.get(key) or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"{key} is not valid JSON: {error}") from None


def _reading(
    found: list[Picture], source: DataSource, options: DataOptions, pictures: Pictures, faults: Faults
) -> Contents:
    folder, paths = source.folder(options), dict[str, str]()
    for where, name, _ in found:
        with faults.at(where):
            paths[where] = picture_path(name, folder)
    pictures.check(paths.values())
    contents = Contents(classes=list(_named_classes(source, options)))
    labels = set[str]()
    for where, _, regions in found:
        if where not in paths:
            continue
        with faults.at(where):
            size = pictures.size(paths[where])
            objects = []
            for place, shape, attributes in regions:
                with faults.at(place):
                    objects.append(_object(shape, _label(attributes, options), size, options.task))
            labels.update(one.label for one in objects)
            contents.pictures.append(LabelledPicture(paths[where], size, tuple(objects), where))
    contents.classes += sorted(labels - set(contents.classes))
    return contents


def _named_classes(source: DataSource, options: DataOptions) -> Iterator[str]:
    """The choices of a project's label attribute, in its order."""
    attributes = source.content.get("_via_attributes") if isinstance(source.content, dict) else None
    regions = attributes.get("region") if isinstance(attributes, dict) else None
    regions = regions if isinstance(regions, dict) else {}
    for name, attribute in regions.items():
        choices = attribute.get("options") if isinstance(attribute, dict) else None
        if isinstance(choices, dict) and (len(regions) == 1 or name in _LABEL_KEYS):
            yield from (options.text(" ".join(str(choice).split())) for choice in choices)
            return


def _label(attributes: Any, options: DataOptions) -> str:
    attributes = attributes if isinstance(attributes, dict) else {}
    key = next((key for key in _LABEL_KEYS if key in attributes), None)
    if key is None and len(attributes) == 1:
        key = next(iter(attributes))
    if key is None and attributes:
        raise InputError(f"region_attributes has {', '.join(map(str, attributes))[:60]}: call the label's one label")
    value = attributes.get(key) if key is not None else None
    if isinstance(value, dict):  # check boxes
        chosen = [name for name, state in value.items() if state]
        if len(chosen) > 1:
            raise InputError(f"the region has {len(chosen)} labels, but an object has one")
        value = chosen[0] if chosen else None
    if not value and not options.label:
        raise InputError("the region has no label; --label gives one to those without")
    return options.text(str(value or options.label))


def _object(shape: Any, label: str, size: tuple[int, int], task: str) -> LabelledObject:
    shape = shape if isinstance(shape, dict) else {}
    name = shape.get("name")
    if name == "rect":
        left, top, width, height = numbers([shape.get(key) for key in ("x", "y", "width", "height")], 4, "rect")
        if task == "segment":
            raise InputError("the region is a rectangle, but a segment task learns masks; --task detect learns boxes")
        return labelled(label, (left, top, left + width, top + height), None, size)
    if name == "polygon":
        xs = numbers(shape.get("all_points_x"), None, "all_points_x")
        ys = numbers(shape.get("all_points_y"), len(xs), "all_points_y")
        points = list(zip(xs, ys, strict=True))
    elif name in ("circle", "ellipse"):
        keys = ("cx", "cy", "r", "r") if name == "circle" else ("cx", "cy", "rx", "ry")
        x, y, rx, ry = numbers([shape.get(key) for key in keys], 4, str(name))
        (theta,) = numbers([shape.get("theta", 0)], 1, "theta")
        points = [_on_ellipse(x, y, rx, ry, theta, 2 * math.pi * k / _CORNERS) for k in range(_CORNERS)]
    else:
        raise InputError(f"the region's shape is {str(name)[:40]!r}, which has no area")
    return labelled(label, None, Mask.from_polygons([[value for point in points for value in point]], size), size)


def _on_ellipse(x: float, y: float, rx: float, ry: float, theta: float, angle: float) -> tuple[float, float]:
    dx, dy = rx * math.cos(angle), ry * math.sin(angle)
    return x + dx * math.cos(theta) - dy * math.sin(theta), y + dx * math.sin(theta) + dy * math.cos(theta)


JSON = Format("VIA JSON", _is_json, _read_json)
CSV = Format("VIA CSV", _is_csv, _read_csv)
