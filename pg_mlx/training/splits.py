"""Training, validation and test data: found by the names that tools give them, or divided by picture."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files.equal import first_equals
from .example import Example

NAMES = {"train": ("train", "training"), "valid": ("valid", "val", "validation", "dev"), "test": ("test",)}
"""What the splits are called, by Roboflow, mlx-lm and others."""
_FILES = (
    *("_annotations.{}.jsonl", "{}.jsonl", "annotations.{}.jsonl", "{}.json", "{}.csv"),
    *("dataset/_annotations.{}.jsonl", "annotations/instances_{}.json", "annotations/instances_{}2017.json"),
    *("annotations/captions_{}2017.json", "annotations/{}.json"),
)
"""Files of one split in a folder of data: Roboflow's old export, mlx-lm's, COCO's own."""
_PICTURES = ("{}2017", "images/{}2017", "images/{}", "{}", "images")
"""Where the pictures of COCO's own files are, from the folder of data on."""


@dataclass(frozen=True)
class Split:
    """Where one split is."""

    path: Path
    images: Path | None = None
    """The folder of its pictures, where they are not beside it."""


def find_splits(path: Path) -> dict[str, Split]:
    """The splits of a file or folder, by "train", "valid", "test". All of it is "train" where no name says otherwise.

    Raises InputError if there is no such file or folder, or if two of its files may be the same split.
    """
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    if path.is_file():
        return {"train": Split(path)}
    found = {}
    for split, names in NAMES.items():
        places = _places(path, names)
        if len(places) > 1:
            shown = " and ".join(str(place.path.relative_to(path)) for place in places[:3])
            raise InputError(f"{path} holds {shown}, which may both be the {split} split; name the file that is meant")
        if places:
            found[split] = places[0]
    return found or {"train": Split(path)}


def _places(path: Path, names: Sequence[str]) -> list[Split]:
    places = []
    for name in names:
        for pattern in _FILES:
            file = path / pattern.format(name)
            if file.is_file():
                places.append(Split(file, _pictures(path, name) if file.parent.name == "annotations" else None))
        if not places and (path / name).is_dir() and any((path / name).iterdir()):
            places.append(Split(path / name))
    return places


def _pictures(path: Path, name: str) -> Path | None:
    folders = (path / pattern.format(name) for pattern in _PICTURES)
    return next((folder for folder in folders if folder.is_dir()), None)


def divide(
    examples: Sequence[Example], share: float, seed: int, first: Mapping[str, Path] | None = None
) -> tuple[list[Example], list[Example]]:
    """The examples to train on, and those to validate with: about `share` of the pictures, at least one of two.

    The rows of one picture, and of its copies, stay together. The same seed and the same pictures, by file name, are
    divided in the same way wherever the data lies. first: what `first_of` says of them, if that is
    known. Raises InputError if the share is not in 0..1 (exclusive of 1).
    """
    if not 0 <= share < 1:
        raise InputError(f"the validation share is {share}, but must be from 0 to less than 1")
    first = first or first_of(examples)
    pictures = list(dict.fromkeys(first[str(example.image)] for example in examples))
    if share == 0 or len(pictures) < 2:
        return list(examples), []
    count = min(len(pictures) - 1, max(1, round(share * len(pictures))))
    ranked = sorted(pictures, key=lambda picture: _rank(picture, seed))
    chosen = set(ranked[:count])
    rows: tuple[list[Example], list[Example]] = ([], [])
    for example in examples:
        rows[first[str(example.image)] in chosen].append(example)
    return rows


def first_of(examples: Iterable[Example]) -> dict[str, Path]:
    """For the picture of each example, by name, the first one with the same bytes."""
    names = list(dict.fromkeys(str(example.image) for example in examples))
    return dict(zip(names, first_equals(map(Path, names)), strict=True))


def _rank(picture: Path, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{picture.name}".encode(errors="surrogateescape"), digest_size=8).digest()
