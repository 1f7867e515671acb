"""COCO: instances (boxes, polygons, run lengths) and captions in one JSON file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ...errors import InputError
from ..example import Example, LabelledObject
from ..faults import Faults
from ..masks import Mask
from .objects import checked_label, labelled, numbers
from .pictures import Pictures, picture_path
from .source import Contents, DataOptions, DataSource, Format, LabelledPicture, checked_prefix, checked_suffix

CAPTION_PREFIX = "caption en"
"""The prompt of captions, where no other is given: the one that PaliGemma was trained with."""

Record = tuple[str, dict[str, Any]]
"""Where a record is, and the record."""


def _is_coco(source: DataSource) -> bool:
    return isinstance(source.content, dict) and {"images", "annotations"} <= set(source.content)


def _is_captions(source: DataSource) -> bool:
    if not _is_coco(source) or source.content.get("categories"):
        return False
    annotations = source.content["annotations"]
    first = annotations[0] if isinstance(annotations, list) and annotations else None
    return isinstance(first, dict) and "caption" in first


def _read_captions(source: DataSource, options: DataOptions, pictures: Pictures, faults: Faults) -> Contents:
    images = _Images(source, options, pictures, faults)
    contents = Contents()
    prefix = checked_prefix(CAPTION_PREFIX if options.prefix is None else options.prefix, options)
    for where, annotation in _records(source, "annotations", faults):
        with faults.at(where):
            key = images.key_of(annotation)
            suffix = checked_suffix(annotation.get("caption"), options)
            if key in images.sizes:
                contents.examples.append(
                    Example(images.paths[key], prefix, suffix.strip(), image_size=images.sizes[key], where=where)
                )
    return contents


def _read_instances(source: DataSource, options: DataOptions, pictures: Pictures, faults: Faults) -> Contents:
    images = _Images(source, options, pictures, faults)
    groups, used = set[str](), set[str]()
    names = _categories(source, options, faults, groups)
    objects: dict[Any, list[LabelledObject]] = defaultdict(list)
    seen: set[Any] = set()
    for where, annotation in _records(source, "annotations", faults):
        with faults.at(where):
            _check_new(annotation.get("id"), seen, "annotation")
            key = images.key_of(annotation)
            category = annotation.get("category_id")
            if not _is_id(category) or category not in names:
                raise InputError(f"category_id is {str(category)[:40]!r}, which is in no category")
            used.add(names[category])
            if annotation.get("iscrowd") not in (0, 1, None, False, True):
                raise InputError(f"iscrowd is {str(annotation['iscrowd'])[:40]!r}, not 0 or 1")
            if key in images.sizes and not annotation.get("iscrowd"):  # a crowd is no object, but a part of the picture
                objects[key].append(_object(annotation, names[category], images.sizes[key], options.task))
    contents = Contents(classes=_classes(names, used, groups))
    for key, size in images.sizes.items():
        found = tuple(objects.get(key, ()))
        contents.pictures.append(LabelledPicture(images.paths[key], size, found, images.where[key]))
    return contents


class _Images:
    """The pictures of a file, by id. `sizes` holds the sound ones, in the order of the file."""

    def __init__(self, source: DataSource, options: DataOptions, pictures: Pictures, faults: Faults):
        self.paths: dict[Any, str] = {}
        self.where: dict[Any, str] = {}
        self.sizes: dict[Any, tuple[int, int]] = {}
        self._known: set[Any] = set()
        records: dict[Any, dict[str, Any]] = {}
        folder = source.folder(options)
        for where, record in _records(source, "images", faults):
            with faults.at(where):
                key = record.get("id")
                _check_new(key, self._known, "image")
                self.paths[key], self.where[key] = picture_path(record.get("file_name"), folder), where
                records[key] = record
        pictures.check(self.paths.values())
        for key, record in records.items():
            with faults.at(self.where[key]):
                size = pictures.size(self.paths[key])
                _check_size(record, size)
                self.sizes[key] = size

    def key_of(self, annotation: dict[str, Any]) -> Any:
        """The id of an annotation's picture. Raises InputError if there is none."""
        key = annotation.get("image_id")
        if not _is_id(key) or key not in self._known:
            raise InputError(f"image_id is {str(key)[:40]!r}, which is in no image")
        return key


def _check_size(record: dict[str, Any], size: tuple[int, int]) -> None:
    said = record.get("width", size[0]), record.get("height", size[1])
    if said == size:
        return
    turned = "; EXIF turns it, so label the upright picture" if said == size[::-1] else ""
    raise InputError(
        f"width and height are {said[0]!r} x {said[1]!r}, but the picture is {size[0]} x {size[1]}{turned}"
    )


def _records(source: DataSource, key: str, faults: Faults) -> Iterator[Record]:
    """The objects of a list in the file. Others become faults."""
    values = source.content.get(key, [])
    if not isinstance(values, list):
        faults.add(str(source.path), f"{key} is {type(values).__name__}, but must be a list")
        return
    for number, value in enumerate(values):
        where = f"{source.path}: {key}[{number}]"
        if isinstance(value, dict):
            yield where, value
        else:
            faults.add(where, f"it is {str(value)[:40]!r}, but must be an object")


def _categories(source: DataSource, options: DataOptions, faults: Faults, groups: set[str]) -> dict[Any, str]:
    """Names by id; adds the names that are supercategories to `groups`."""
    names: dict[Any, str] = {}
    seen: set[Any] = set()
    for where, record in _records(source, "categories", faults):
        with faults.at(where):
            _check_new(record.get("id"), seen, "category")
            names[record["id"]] = options.text(checked_label(record.get("name")))
            if record.get("supercategory") != record["name"]:
                groups.add(options.text(str(record.get("supercategory"))))
    return names


def _classes(names: dict[Any, str], used: set[str], groups: set[str]) -> list[str]:
    """Names by id, without the group that Roboflow adds: a supercategory of others that has no object."""
    ordered = [names[key] for key in sorted(names, key=lambda key: (isinstance(key, str), key))]
    return list(dict.fromkeys(name for name in ordered if name in used or name not in groups))


def _object(annotation: dict[str, Any], label: str, size: tuple[int, int], task: str) -> LabelledObject:
    box = None
    if annotation.get("bbox"):
        left, top, width, height = numbers(annotation["bbox"], 4, "bbox")
        box = left, top, left + width, top + height
    given, mask = annotation.get("segmentation"), None
    if isinstance(given, dict):
        mask = Mask.from_rle(given, size)
    elif isinstance(given, list) and given and (task == "segment" or box is None):
        mask = Mask.from_polygons(given, size)
    elif given is not None and not isinstance(given, list):
        raise InputError(f"segmentation is {str(given)[:40]!r}, but must be polygons or run lengths")
    if task == "segment" and mask is None:
        raise InputError("the annotation has no segmentation, which a segment task learns; --task detect learns boxes")
    return labelled(label, box, mask, size)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _check_new(value: Any, seen: set[Any], what: str) -> None:
    if not _is_id(value):
        raise InputError(f"the {what} has the id {str(value)[:40]!r}, but ids are whole numbers or text")
    if value in seen:
        raise InputError(f"two records of {what} have the id {value!r}")
    seen.add(value)


INSTANCES = Format("COCO instances", lambda source: _is_coco(source) and not _is_captions(source), _read_instances)
CAPTIONS = Format("COCO captions", _is_captions, _read_captions)
