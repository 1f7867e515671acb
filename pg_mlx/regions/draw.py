"""A picture with its regions drawn in: translucent masks, boxes, and labels that can be read at any size."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from .fonts import Font, font_for
from .paste import inside
from .region import Region

if TYPE_CHECKING:
    Color = tuple[int, int, int]

READABLE_SIDE = 320
"""A picture whose longer side has fewer pixels is enlarged by a whole factor; otherwise a label would cover it."""
MASK_OPACITY = 0.45

Rectangle = tuple[int, int, int, int]


def annotate(image: Image.Image, regions: Sequence[Region], unknown: list[str] | None = None) -> Image.Image:
    """A new RGB picture with the regions drawn in.

    image: RGB, the right way up, of any size. Small pictures come back larger, and narrow ones with white space beside
    or below, so that labels fit. A label that no font can show is added to `unknown`, and drawn as "#" and the number
    of the region, counted from 1.
    """
    factor = max(1, -(-READABLE_SIDE // max(image.size)))
    width, height = (side * factor for side in image.size)
    style = _Style.of(width, height)
    canvas = Image.new("RGB", (max(width, 8 * style.text), max(height, 2 * style.text)), "white")
    canvas.paste(image.resize((width, height), Image.Resampling.NEAREST) if factor > 1 else image)
    regions = [replace(region, image_size=(width, height)) for region in regions]
    for region in regions:
        _shade(canvas, region)
    draw = ImageDraw.Draw(canvas)
    boxes = [_pixels(region) for region in regions]
    for region, box in zip(regions, boxes, strict=True):
        _frame(draw, box, style, color_of(region.label))
    taken: list[Rectangle] = []
    unknown = [] if unknown is None else unknown
    for number, (region, box) in enumerate(zip(regions, boxes, strict=True), 1):
        text, font = _caption(region, number, style, canvas.width, unknown)
        if text and font is not None:
            taken.append(_tag(draw, canvas.size, text, font, box, style, color_of(region.label), taken))
    return canvas


def color_of(label: str) -> Color:
    """A bright colour that depends on the label only."""
    number = zlib.crc32(label.encode(errors="replace"))
    lightness, saturation = (0.42, 0.55, 0.66)[number // 360 % 3], (0.75, 0.95)[number // 1080 % 2]
    red, green, blue = colorsys.hls_to_rgb(number % 360 / 360, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def text_color(background: Color) -> str:
    """Black or white, whichever stands out more (relative luminance: WCAG 2)."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in background)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


@dataclass(frozen=True)
class _Style:
    """Sizes in pixels, for a picture."""

    line: int
    text: int

    @classmethod
    def of(cls, width: int, height: int) -> _Style:
        # In proportion to the whole picture, but not too large for a narrow strip.
        side = min((width * height) ** 0.5, 3 * min(width, height))
        return cls(max(2, round(side / 260)), max(13, round(side / 32)))


def _shade(canvas: Image.Image, region: Region) -> None:
    if region.decoded is None:
        return
    part = inside(region.decoded, region.box_pixels)
    if part.size:
        opacity = Image.fromarray(part.astype(np.uint8) * round(255 * MASK_OPACITY))
        canvas.paste(color_of(region.label), region.box_pixels, opacity)


def _pixels(region: Region) -> Rectangle:
    x0, y0, x1, y1 = map(round, region.box)
    return x0, y0, x1 - 1, y1 - 1


def _frame(draw: ImageDraw.ImageDraw, box: Rectangle, style: _Style, color: Color) -> None:
    """A coloured line inside a thin line of the opposite brightness, so that it is visible on any background."""
    x0, y0, x1, y1 = box
    x1, y1 = max(x0, x1), max(y0, y1)
    halo = max(1, style.line // 3)
    draw.rectangle((x0 - halo, y0 - halo, x1 + halo, y1 + halo), outline=text_color(color), width=style.line + 2 * halo)
    draw.rectangle((x0, y0, x1, y1), outline=color, width=style.line)


def _caption(region: Region, number: int, style: _Style, width: int, unknown: list[str]) -> tuple[str, Font | None]:
    """What to write, not much wider than half the picture, and in which font.

    A label without a font is added to `unknown`.
    """
    label = " ".join(region.label.split())
    font = font_for(label, style.text)
    if font is None:
        unknown.append(region.label)
        label, font = f"#{number}", font_for("#", style.text)
    score = "" if region.score is None else f" {region.score:.2f}"
    if font is None:
        return "", None
    room = max(0.55 * width, 7 * style.text) - 2 * _padding(style)
    if font.getlength(label + score) > room:
        while label and font.getlength(f"{label}…{score}") > room:
            label = label[:-1]
        label = f"{label.rstrip()}…"
    return (label + score).strip(), font


def _padding(style: _Style) -> int:
    return max(2, style.text // 5)


def _tag(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    font: Font,
    box: Rectangle,
    style: _Style,
    color: Color,
    taken: list[Rectangle],
) -> Rectangle:
    """Draw the text on the box's colour, where possible without hiding another label; returns where."""
    padding = _padding(style)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = round(right - left) + 2 * padding, round(bottom - top) + 2 * padding
    x0, y0, x1, y1 = box
    edge = style.line
    places = [
        *((x0, y0 - height), (x0, y0 + edge), (x1 - width, y0 + edge), (x0, y1 - height - edge), (x0, y1 + 1)),
        *((x1 - width, y1 - height - edge), (x1, y0)),
    ]
    fitting = [_moved_inside(x, y, width, height, size) for x, y in places]
    free = [place for place in fitting if not any(_overlap(place, other) for other in taken)]
    chosen = (free or fitting)[0]
    draw.rectangle(chosen, fill=color)
    draw.text((chosen[0] + padding - left, chosen[1] + padding - top), text, font=font, fill=text_color(color))
    return chosen


def _moved_inside(x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Rectangle:
    x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
    return x, y, x + width - 1, y + height - 1


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
