"""How a notebook shows an answer: as HTML, or as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .html import chip, drawn, img, printable, spoken
from .region import Region

if TYPE_CHECKING:
    from PIL import Image

SIDE, GRID_SIDE = 640, 320
"""Longest side in pixels of a picture in a notebook, and of one of several."""
_PICTURE = ' style="max-width:100%;height:auto"'
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;margin:.4em 0;color:inherit;background:none"
"""Colours are the page's own, light or dark."""


def to_html(image: Image.Image | str, regions: Sequence[Region], text: str, note: str = "", side: int = SIDE) -> str:
    """The picture with its regions, the regions in words, and the text.

    image: RGB, or the reason why there is none. note: a remark below.
    """
    parts = [_paragraph(image, "em") if isinstance(image, str) else _picture(image, regions, side)]
    words = f'<pre style="{_TEXT}">{escape(printable(text))}</pre>'
    if regions:
        items = "".join(f"<li>{chip(region)}</li>" for region in regions)
        parts.append(f'<ul style="list-style:none;padding:0;margin:.4em 0">{items}</ul>')
        words = f"<details><summary>the model's words</summary>{words}</details>"
    return f'<div style="max-width:{side}px">{"".join(parts)}{words}{_paragraph(note, "small")}</div>'


def to_png(image: Image.Image, regions: Sequence[Region]) -> bytes:
    """The picture with its regions as a PNG of at most 256 colours."""
    file = io.BytesIO()
    drawn(image, regions, SIDE).quantize(256).save(file, "PNG", optimize=True)
    return file.getvalue()


def side_by_side(answers: Sequence[str], more: int) -> str:
    """Answers as `to_html` makes them, in rows. more: how many others are not shown."""
    row = "display:flex;flex-wrap:wrap;gap:1em;align-items:flex-start"
    return f'<div style="{row}">{"".join(answers)}</div>{_paragraph(f"and {more} more" if more else "", "small")}'


def _paragraph(text: str, kind: str) -> str:
    return f"<p><{kind}>{escape(printable(text))}</{kind}></p>" if text else ""


def _picture(image: Image.Image, regions: Sequence[Region], side: int) -> str:
    description = f"the picture with {spoken(regions)}" if regions else "the picture"
    return img(drawn(image, regions, side), description, attributes=_PICTURE)
