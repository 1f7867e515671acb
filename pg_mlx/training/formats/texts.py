"""A folder of pictures, each with its answer in a .txt file of the same name."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import InputError
from ..example import Example
from ..faults import Faults
from .lines import MAX_LINE_BYTES, read_text, visible
from .pictures import SUFFIXES, Pictures
from .source import Contents, DataOptions, DataSource, Format, checked_prefix, checked_suffix

_YOLO = re.compile(r"(?:\d+(?: +-?\d*\.?\d+(?:e-?\d+)?){4,}\s*)+")
"""Lines of a class number and four or more coordinates."""


def _is_texts(source: DataSource) -> bool:
    return source.path.is_dir() and any(path.suffix.lower() == ".txt" for path in visible(source.path))


def _read(source: DataSource, options: DataOptions, pictures: Pictures, faults: Faults) -> Contents:
    if options.prefix is None:
        raise InputError(
            f"{source.path} holds pictures with texts, which are the answers; --prefix (convert: --calibration-prompt) "
            "gives the prompt"
        )
    prefix = checked_prefix(options.prefix, options)
    texts = {path.stem: path for path in visible(source.path) if path.suffix.lower() == ".txt"}
    images = _pictures_by_stem(source.folder(options), faults)
    pictures.check(map(str, images.values()))
    contents = Contents()
    for stem, image in images.items():
        with faults.at(str(image)):
            size = pictures.size(str(image))
            if stem not in texts:
                raise InputError(f"the picture has no {stem}.txt with its answer; an empty one is an empty answer")
            where = f"{texts[stem]}"
            suffix = checked_suffix(read_text(texts[stem], MAX_LINE_BYTES).strip(), options)
            if _YOLO.fullmatch(suffix):
                raise InputError(f"{stem}.txt holds numbers as YOLO has them, not an answer; export the labels as COCO")
            contents.examples.append(Example(str(image), prefix, suffix, image_size=size, where=where))
    for stem in texts.keys() - images.keys():
        if stem.lower() not in ("readme", "readme.roboflow", "readme.dataset", "classes"):
            faults.add(str(texts[stem]), "there is no picture of this name")
    return contents


def _pictures_by_stem(folder: Path, faults: Faults) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in visible(folder):
        if path.suffix.lower() in SUFFIXES:
            if path.stem in found:
                faults.add(str(path), f"{found[path.stem].name} has the same name")
            found.setdefault(path.stem, path)
    return found


TEXTS = Format("pictures with .txt files", _is_texts, _read)
