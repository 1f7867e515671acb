"""Draw the pictures of docs/regions.md: one scene in every shape and kind of file that pictures come in. And
results.png, which the README begins with: answers of the demo.

    python -m benchmarks.region_pictures docs/pictures

The regions are those of the shapes in the scene, so the drawing can be compared with the scene.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import pg_mlx
from pg_mlx.demo import CHECKPOINT
from pg_mlx.processor.images import load_image
from pg_mlx.regions import Region
from pg_mlx.regions.draw import annotate
from pg_mlx.regions.paste import crop

SHAPES = {
    "ball": ((0.08, 0.30, 0.34, 0.70), (200, 40, 50)),
    "Zelt": ((0.38, 0.18, 0.66, 0.72), (40, 120, 60)),
    "солнце": ((0.74, 0.06, 0.92, 0.34), (250, 210, 60)),
    "箱": ((0.70, 0.60, 0.95, 0.92), (120, 80, 50)),
}
"""x0, y0, x1, y1 of the picture, and a colour."""

KINDS = {
    "landscape": (480, 300),
    "portrait": (260, 420),
    "tiny": (28, 20),
    "huge": (6000, 4000),
    "grayscale": (480, 300),
    "transparent": (480, 300),
    "turned": (260, 420),
}
"""Size as it is seen upright."""

SHOWN = 480
"""Longest side of what is written."""

ANSWERED = (
    ("scene.png", "detect red circle ; blue star"),
    ("scene.png", "segment red circle"),
    ("clutter.png", "segment green cross"),
    ("dog.png", "ocr"),
)
"""Pictures of the demo, and what results.png shows of them."""
HEIGHT, TEXT = 400, 18


def outline(label: str, size: tuple[int, int]) -> Image.Image:
    """Where a shape is: "L", 0 or 255."""
    mask = Image.new("L", size)
    draw, (width, height) = ImageDraw.Draw(mask), size
    x0, y0, x1, y1 = SHAPES[label][0]
    box = (x0 * width, y0 * height, x1 * width, y1 * height)
    if label in ("ball", "солнце"):
        draw.ellipse(box, fill=255)
    elif label == "Zelt":
        draw.polygon([(box[0], box[3]), ((box[0] + box[2]) / 2, box[1]), (box[2], box[3])], fill=255)
    else:
        draw.rectangle(box, fill=255)
    return mask


def scene(size: tuple[int, int]) -> Image.Image:
    rows = np.linspace((120, 170, 220), (90, 150, 80), size[1]).astype(np.uint8)
    image = Image.fromarray(np.repeat(rows[:, None], size[0], axis=1))
    for label, (_, color) in SHAPES.items():
        image.paste(color, (0, 0), outline(label, size))
    return image


def regions(size: tuple[int, int]) -> list[Region]:
    """One region for each shape, with a mask if the shape is not a box."""
    found = []
    for number, (label, ((x0, y0, x1, y1), _)) in enumerate(SHAPES.items()):
        y_low, x_low, y_high, x_high = (round(value * 1023) for value in (y0, x0, y1, x1))
        region = Region(label, (y_low, x_low, y_high, x_high), size, score=0.97 - 0.11 * number)
        if label != "箱":
            decoded = 2 * crop(np.asarray(outline(label, size)) > 0, region.box_pixels) - 1
            region = Region(label, region.locations, size, (0,) * 16, score=region.score, decoded=decoded)
        found.append(region)
    return found


def file_of(kind: str) -> bytes:
    image, options = scene(KINDS[kind]), dict[str, object]()
    if kind == "grayscale":
        image = image.convert("L")
    elif kind == "transparent":
        image.putalpha(outline("Zelt", image.size).point(lambda value: 255 if value else 110))
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise
        image, options = image.rotate(90, expand=True), {"exif": exif}
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def results() -> Image.Image:
    """The demo's answers to ANSWERED, drawn, each with its prompt below."""
    model, processor = pg_mlx.load()
    drawn = []
    for name, prompt in ANSWERED:
        generation = pg_mlx.generate(model, processor, prompt, CHECKPOINT.parent / name)
        image = generation.draw()
        image.thumbnail((image.width, HEIGHT))
        drawn.append((image, prompt if generation.regions else f'{prompt}: "{generation.text}"'))
    canvas = Image.new("RGB", (sum(image.width + 12 for image, _ in drawn), HEIGHT + 2 * TEXT), "white")
    draw, left = ImageDraw.Draw(canvas), 0
    for image, words in drawn:
        canvas.paste(image, (left, 0))
        draw.text((left, HEIGHT + 8), words, fill=(60, 60, 60), font=ImageFont.load_default(TEXT))
        left += image.width + 12
    return canvas.quantize(256, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", type=Path, metavar="FOLDER")
    target = parser.parse_args().target
    target.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        image = load_image(file_of(kind))
        unknown: list[str] = []
        drawn = annotate(image, regions(image.size), unknown)
        size = drawn.size
        drawn.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
        drawn.quantize(256).save(target / f"{kind}.png", optimize=True)
        kilobytes = (target / f"{kind}.png").stat().st_size / 1000
        print(f"{kind}: {image.size} drawn as {size}, shown as {drawn.size}, {kilobytes:.0f} kB; no font for {unknown}")
    results().save(target / "results.png", optimize=True)


if __name__ == "__main__":
    main()
