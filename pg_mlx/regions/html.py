"""Pictures and regions as pieces of HTML that are whole in themselves, and safe whatever a label or a text says."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .draw import annotate, color_of, text_color
from .region import Region

if TYPE_CHECKING:
    from PIL import Image

_QUALITY = 85


def drawn(image: Image.Image, regions: Sequence[Region], side: int) -> Image.Image:
    """The picture with its regions, RGB, of at most `side` pixels in width and height. It is made smaller before it is
    drawn on, so that lines and letters stay readable."""
    small = image.copy()
    small.thumbnail((side, side))
    result = annotate(small, regions)
    result.thumbnail((side, side))  # white space beside a narrow one can have made it larger
    return result


def data_uri(image: Image.Image) -> str:
    """The picture as a JPEG inside of an address."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def img(image: Image.Image, description: str, *, attributes: str = "") -> str:
    """An <img> that holds the picture. attributes: more of them, as they are."""
    width, height = image.size
    size = f'width="{width}" height="{height}"'
    return f'<img src="{data_uri(image)}" alt="{escape(printable(description))}" {size}{attributes}>'


def chip(region: Region) -> str:
    """A label in the colour in which it is drawn, its score if it has one, and its box in pixels."""
    background = color_of(region.label)
    style = f"background:rgb{background};color:{text_color(background)};padding:0 .4em;border-radius:.25em"
    score = "" if region.score is None else f" {region.score:.2f}"
    box = " ".join(map(str, map(round, region.box)))
    return f'<span style="{style}">{escape(printable(region.label or "an object"))}{score}</span> <code>{box}</code>'


def spoken(regions: Sequence[Region]) -> str:
    """What is drawn, in words: "2 cat, 1 dog"."""
    labels = [region.label or "an object" for region in regions]
    return ", ".join(f"{labels.count(label)} {label}" for label in dict.fromkeys(labels)) or "nothing drawn"


def printable(text: str) -> str:
    """The text without what a page cannot hold: control characters, and halves of characters from odd file names."""
    plain = "".join(letter if letter >= " " or letter in "\n\t" else "\ufffd" for letter in text)
    return plain.encode("utf-8", "replace").decode("utf-8")
