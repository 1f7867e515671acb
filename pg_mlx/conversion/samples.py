"""Pictures and prompts to compare two checkpoints on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..processor import load_image
from ..processor.formats import PICTURE_SUFFIXES

if TYPE_CHECKING:
    from PIL import Image

PROMPTS = ("caption en", "detect object", "ocr", "answer en what is in the picture?")
MAX_PICTURES = 32
_SIZES = ((640, 480), (480, 640), (512, 512), (800, 450))
_WORDS = ("exit", "open", "coffee", "market", "42", "station", "north", "1879", "bread", "street", "7", "tickets")


@dataclass(frozen=True)
class Sample:
    """A question: image is anything that `processor.load_image` takes. One picture may serve several."""

    image: Any
    prompt: str


def default_samples(folder: Path | None = None) -> list[Sample]:
    """Every prompt of PROMPTS about each picture: the first MAX_PICTURES image files of the folder, by name, or,
    without a folder, four drawings that are the same everywhere.

    Photographs say more than drawings. Raises InputError if there is no picture, and one that names all pictures that
    cannot be read.
    """
    pictures = [_drawing(seed) for seed in range(len(_SIZES))] if folder is None else _image_files(folder)
    return [Sample(picture, prompt) for picture in pictures for prompt in PROMPTS]


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"no such folder of pictures: {folder}")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise InputError(f"{folder} holds no pictures")
    paths = paths[:MAX_PICTURES]
    problems = []
    for path in paths:
        try:
            load_image(path)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(f"{len(problems)} of {len(paths)} pictures cannot be used: {'; '.join(problems)}")
    return paths


def _drawing(seed: int) -> Image.Image:
    """Shapes on a gradient, and two lines of words."""
    from PIL import Image, ImageDraw, ImageFont

    chance = random.Random(seed)
    width, height = size = _SIZES[seed % len(_SIZES)]

    def colour(low: int, high: int) -> tuple[int, ...]:
        return tuple(chance.randint(low, high) for _ in range(3))

    ramp = Image.linear_gradient("L").resize(size)
    image = Image.composite(Image.new("RGB", size, colour(0, 160)), Image.new("RGB", size, colour(120, 255)), ramp)
    draw = ImageDraw.Draw(image)
    for shape in (draw.ellipse, draw.rectangle, draw.rounded_rectangle, draw.ellipse, draw.rectangle):
        x, y = chance.randrange(width * 3 // 4), chance.randrange(height * 3 // 4)
        box = (x, y, x + chance.randint(width // 10, width // 3), y + chance.randint(height // 10, height // 3))
        shape(box, fill=colour(0, 255), outline=colour(0, 255))
    for line in (0.1, 0.8):
        words = " ".join(chance.sample(_WORDS, 2))
        place = (width // 10, int(height * line))
        draw.text(
            place, words, font=ImageFont.load_default(height // 10), fill="white", stroke_width=2, stroke_fill="black"
        )
    return image
