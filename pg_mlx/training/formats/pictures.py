"""The pictures that data names: found, decoded once to be sure that they are sound, and measured."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...processor import images

_ADDRESS = re.compile(r"(?:https?|file|data|s3|gs):", re.IGNORECASE)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2")
"""File names that are pictures, where a folder is looked through."""


class Pictures:
    """Sizes of pictures, each file decoded once."""

    def __init__(self, on_progress: Callable[[int, int], None] = lambda done, total: None):
        """on_progress: called with the number of pictures that were checked, and of those that will be."""
        self._sizes: dict[str, tuple[int, int] | InputError] = {}
        self._on_progress = on_progress

    def check(self, paths: Iterable[str]) -> None:
        """Decode those not known yet, several at a time. `size` raises what was wrong with one."""
        missing = [path for path in dict.fromkeys(paths) if path not in self._sizes]
        if not missing:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", images.PictureWarning)  # a page that is not read is no fault of the data
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                for done, (path, found) in enumerate(zip(missing, pool.map(_measure, missing), strict=True), 1):
                    self._sizes[path] = found
                    self._on_progress(done, len(missing))

    def size(self, path: str) -> tuple[int, int]:
        """Width and height in pixels, upright. Raises InputError if the file is missing or no sound picture."""
        self.check([path])
        found = self._sizes[path]
        if isinstance(found, InputError):
            raise InputError(str(found))
        return found


def picture_path(name: Any, folder: Path) -> str:
    """Where a picture is that data calls `name`: as it is if that is absolute, else from `folder` on.

    Paths that lead out of the folder are allowed, since data is often kept apart from its pictures; a picture is only
    ever read. Addresses are refused, because each epoch reads every picture. Raises InputError.
    """
    if isinstance(name, list):
        if len(name) != 1:
            raise InputError(f"the row names {len(name)} pictures, but PaliGemma reads one")
        name = name[0]
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"the picture is {str(name)[:60]!r}, but must be the name of a file")
    if "\0" in name:
        raise InputError("the picture's name holds a zero byte")
    if _ADDRESS.match(name):
        raise InputError(f"the picture is the address {name[:60]}; download it and name the file")
    return os.path.join(folder, name)  # noqa: PTH118  # "./-" stays, "-" is stdin


def _measure(path: str) -> tuple[int, int] | InputError:
    try:
        return images.full_size(images.load_image(path))
    except InputError as error:
        return error
    except (OSError, MemoryError) as error:
        return InputError(f"{path} cannot be read: {error}")
