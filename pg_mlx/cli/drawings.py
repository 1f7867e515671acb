"""The files that --annotate and --masks ask for."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, PgMlxError
from ..files.whole import write_whole
from .pictures import Item
from .writers import Success, View

if TYPE_CHECKING:
    from PIL import Image

_LABEL_CHARACTERS = 30
_SOFTWARE, _PROGRAM = 0x0131, "pg_mlx"
"""The field of EXIF in which a program names itself, and our name."""
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}")
"""What looks like the suffix of a file, as .svg; not that of a folder called photos.2024."""


class Drawings(View):
    """Writes what --annotate and --masks ask for, each file whole or not at all. A file of the same name is replaced if
    it was written by such a run."""

    def __init__(self, annotate: str | None, masks: str | None, soft: bool, items: list[Item], many: bool):
        """Raises InputError for targets that cannot be meant, before there is anything to write."""
        if soft and not masks:
            raise InputError("--soft-masks says how --masks DIR are written, which is missing")
        self._sources = {_identity(path) for item in items if (path := item.path)}
        self._targets = _targets(annotate, items, many) if annotate else {}
        for target in self._targets.values():
            self._spare(target)
        self._masks = Path(masks).expanduser() if masks else None
        self._soft = soft
        self._written = 0
        self._unknown: set[str] = set()
        folders = {target.parent for target in self._targets.values()} | ({self._masks} if self._masks else set())
        for folder in folders:
            _check_folder(folder)

    def add(self, answer: Success) -> None:
        """Write the files of one answer. Raises PgMlxError if one cannot be written."""
        name = answer.item.name
        if name in self._targets:
            from ..regions.draw import annotate

            unknown: list[str] = []
            drawn = annotate(answer.item.load(), answer.generation.regions, unknown)
            self._warn(unknown)
            save_image(drawn, self._targets[name])
        if self._masks:
            for number, region in enumerate(answer.generation.regions, 1):
                mask = _mask_image(region.soft_mask if self._soft else region.mask)
                if mask:
                    label = re.sub(r"[^\w-]+", "_", region.label).strip("_")[:_LABEL_CHARACTERS]
                    target = self._masks / f"{'-'.join(filter(None, (name, str(number), label)))}.png"
                    self._spare(target)
                    save_image(mask, target)
                    self._written += 1

    def _spare(self, target: Path) -> None:
        if target.exists() and (_identity(target) in self._sources or not _is_ours(target)):
            raise InputError(f"the picture {target} would be replaced; choose another name or folder to write to")

    def close(self) -> None:
        """Say so on stderr if --masks had nothing to write."""
        if self._masks and not self._written:
            print(f"no masks were written to {self._masks}: no answer had one", file=sys.stderr)

    def _warn(self, unknown: list[str]) -> None:
        for label in unknown:
            if label not in self._unknown:
                print(f"no font here has every letter of {label!r}; it is drawn as its number", file=sys.stderr)
        self._unknown.update(unknown)


def _targets(annotate: str, items: list[Item], many: bool) -> dict[str, Path]:
    """The file for each item's drawing, by the item's name: the path itself if it names a picture file, else one in
    that folder. Raises InputError if it cannot be written."""
    from PIL import Image

    out = Path(annotate).expanduser()
    as_file = not out.is_dir() and out.suffix.lower() in Image.registered_extensions()
    if not as_file and not out.is_dir() and not annotate.endswith(("/", os.sep)) and _SUFFIX.fullmatch(out.suffix):
        raise InputError(
            f"--annotate {out}: no picture can be written as {out.suffix}; use .png or .jpg, or end a folder's name "
            "with /"
        )
    if as_file and many:
        raise InputError(f"--annotate {out} names one file, but there are several answers; name a folder")
    if as_file:
        if Image.registered_extensions()[out.suffix.lower()] not in Image.SAVE:
            raise InputError(f"--annotate {out}: pictures of this kind can be read but not written; use .png or .jpg")
        if not out.parent.is_dir():
            raise InputError(f"--annotate: no such folder: {out.parent}")
        return {items[0].name: out}
    return {item.name: out / f"{item.name}{'.jpg' if _is_jpeg(item.source) else '.png'}" for item in items}


def _identity(path: Path) -> tuple[int, int]:
    """The same for two names of one file: names may differ only in case, or be links."""
    status = path.stat()
    return status.st_dev, status.st_ino


def _is_ours(path: Path) -> bool:
    """Whether `save_image` wrote a file. An empty one, as of mktemp, counts too: nothing is lost."""
    from PIL import Image

    try:
        if not path.is_file():
            return False
        if path.stat().st_size == 0:
            return True
        with Image.open(path) as image:
            if image.format == "PNG" and "exif" not in image.info:
                return False  # getexif would decode the whole picture to look behind it
            return image.getexif().get(_SOFTWARE) == _PROGRAM
    except Exception:  # whatever Pillow raises for a file that is no picture
        return False


def _is_jpeg(source: str) -> bool:
    return source.lower().endswith((".jpg", ".jpeg"))


def _check_folder(folder: Path) -> None:
    """Raises InputError for a path that is not a folder and cannot become one. It is made with the first file in it."""
    existing = next((path for path in (folder, *folder.parents) if path.exists()), None)
    if existing is not None and not existing.is_dir():
        raise InputError(f"{existing} is a file, not a folder")


def _mask_image(mask: object) -> Image.Image | None:
    """Black and white, or the shades in 16 bits."""
    if mask is None:
        return None
    import numpy as np
    from PIL import Image

    array = np.asarray(mask)
    scaled = array.astype(np.uint8) * 255 if array.dtype == bool else np.round(array * 65535).astype(np.uint16)
    return Image.fromarray(scaled)


def save_image(image: Image.Image, target: Path) -> None:
    """Write the picture, whole or not at all, with our mark where the format has a place for it; its folder is made.
    Raises PgMlxError if that fails."""
    from PIL import Image

    exif = Image.Exif()
    exif[_SOFTWARE] = _PROGRAM
    options = {"exif": exif, **({"quality": 90} if _is_jpeg(target.name) else {})}
    kind = Image.registered_extensions()[target.suffix.lower()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, lambda path: image.save(path, kind, **options))
    except (OSError, ValueError) as error:  # ValueError: a format that cannot hold such a picture
        raise PgMlxError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from error
