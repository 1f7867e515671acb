"""Which picture a question was about, without keeping the picture in memory."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InputError
from ..processor import images
from ..processor.sources import shown
from .features import Picture

if TYPE_CHECKING:
    from PIL import Image

_LONGEST_NAME = 4096
"""Characters of a path or address. Longer text is a picture itself, as base64."""


class AskedImage:
    """The image that a question was about, as it was given.

    A path or an address is kept as text, and opened again when the picture is wanted. An object (a PIL image, an array,
    bytes) is referred to weakly: an answer never keeps it alive. Only the newest such object in the program is kept, so
    that an answer can be shown in the line that asked. What can be read once only (an open file, stdin) is not kept.
    """

    _newest: ClassVar[Any] = None

    def __init__(self, source: Any = None):
        """source: anything that `load_image` takes, or a list of that, of which the first counts; None if unknown."""
        if isinstance(source, (list, tuple)):
            source = source[0] if source else None
        if isinstance(source, Picture) or hasattr(source, "read"):
            source = None
        self.name: str | None = None
        """The path or address; None for an object."""
        self._object: Callable[[], Any] = _nothing
        if isinstance(source, os.PathLike) or (isinstance(source, str) and len(source) <= _LONGEST_NAME):
            with suppress(Exception):  # whatever an object's own __fspath__ raises
                name = os.fsdecode(source)
                self.name = None if name == "-" else name
        elif source is not None:
            held = _Held(source)
            try:
                self._object = weakref.ref(source)
            except TypeError:  # bytes and text: only as long as they are the newest
                self._object = _through(weakref.ref(held))
            AskedImage._newest = held

    def load(self, image_size: tuple[int, int]) -> Image.Image:
        """The picture in RGB, the right way up.

        image_size: its width and height when the question was asked. Raises InputError if it has another size now, if
        it is no longer in memory, or if it cannot be read.
        """
        source = self.name or self._object()
        if source is None:
            raise InputError("the picture of this answer is no longer in memory; draw(image) takes it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", images.PictureWarning)  # it was said when the question was asked
            image = images.load_image(source)
        if images.full_size(image) != image_size:
            name = shown(self.name) if self.name else "the picture"
            raise InputError(f"{name} has changed since the question was asked")
        return image

    def __reduce__(self) -> tuple[type[AskedImage], tuple[str | None]]:
        """Another process or a copy gets the name only."""
        return AskedImage, (self.name,)

    def __repr__(self) -> str:
        return f"AskedImage({shown(self.name)!r})" if self.name else "AskedImage(<an object>)"


class _Held:
    """Keeps an object, also one that cannot be referred to weakly."""

    def __init__(self, value: Any):
        self.value = value


def _nothing() -> None:
    return None


def _through(held: Callable[[], _Held | None]) -> Callable[[], Any]:
    def value() -> Any:
        holder = held()
        return holder.value if holder else None

    return value
