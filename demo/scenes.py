"""Pictures that the demo checkpoint knows, with their ground truth: a seed in, a Scene out.

A scene has one to six coloured shapes at free positions (they may overlap a little), now
and then a short word or a number, and a background that is plain, a gradient, noise or soft clutter. Half of them went
through JPEG. The same seed always gives the same scene (with the same fonts and Pillow).
"""

from __future__ import annotations

import functools
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 150, 50),
    "blue": (38, 80, 210),
    "yellow": (245, 215, 40),
    "purple": (140, 50, 170),
    "orange": (250, 130, 20),
}
WORDS = (
    *("cat", "dog", "sun", "sky", "sea", "car", "bus", "map", "box", "cup", "hat", "key", "pen", "tea", "egg", "ant"),
    *("bee", "cow", "fox", "owl", "pig", "rat", "jam", "ice", "book", "door", "fish", "tree", "bird", "moon", "star"),
    *("lamp", "milk", "rose", "snow", "wind", "ship", "road", "farm", "gold"),
)
BACKGROUNDS = ("plain", "gradient", "noisy", "cluttered")
FONTS = (
    "dejavu/DejaVuSans-Bold.ttf",
    "dejavu/DejaVuSerif-Bold.ttf",
    "dejavu/DejaVuSansMono-Bold.ttf",
    "liberation/LiberationSans-Bold.ttf",
    "liberation/LiberationSerif-Bold.ttf",
    "freefont/FreeSansBold.ttf",
)
FONT_FOLDER = Path("/usr/share/fonts/truetype")

TRAIN_SEEDS = range(1_000_000, 2_000_000)
VALIDATION_SEEDS = range(2_000_000, 2_100_000)
TEST_SEEDS = range(3_000_000, 3_100_000)

CANVASES = ((224, 224), (256, 192), (192, 256))
MASK_SIDE = 64
TEXT_MARGIN = 0.02  # around a text on its plate, of the picture's width
MIN_VISIBLE = 0.8
MIN_DISTANCE = 0.14  # between centres, of the shorter side


@dataclass(frozen=True)
class Item:
    """A shape. box is (x0, y0, x1, y1) of its visible part in 0..1, mask the same part in the picture's pixels."""

    shape: str
    color: str
    box: tuple[float, float, float, float]
    mask: np.ndarray  # bool [H, W]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def center(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Scene:
    image: Image.Image
    background: str
    items: list[Item]
    text: str  # "" if there is none
    text_box: tuple[float, float, float, float] | None


def make_scene(seed: int, scale: float = 1.0, count: int | None = None) -> Scene:
    """The scene of a seed. `scale` enlarges it for people's eyes; `count` fixes the number of shapes."""
    for attempt in range(100):
        rng = np.random.default_rng((seed, attempt))
        scene = _try_scene(rng, scale, count)
        if scene is not None:
            return scene
    raise RuntimeError(f"no room for the shapes of seed {seed}")


def _try_scene(rng: np.random.Generator, scale: float, count: int | None) -> Scene | None:
    width, height = (round(side * scale) for side in CANVASES[rng.integers(len(CANVASES))])
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    image = _background(rng, background, width, height, scale)
    wanted = count or int(rng.choice(6, p=[0.18, 0.2, 0.2, 0.18, 0.14, 0.1])) + 1

    text, text_box, text_layer = "", None, None
    if rng.random() < 0.5:
        text, text_layer, text_box = _text(rng, width, height)

    owner = np.full((height, width), -1, np.int8)  # which shape is seen at each pixel
    areas: list[int] = []
    names: list[tuple[str, str]] = []
    centers: list[np.ndarray] = []
    for index in range(wanted):
        for _ in range(30):
            shape, color = SHAPES[rng.integers(len(SHAPES))], list(COLORS)[rng.integers(len(COLORS))]
            outline, rgb = _shape(rng, shape, width, height), _jitter(rng, COLORS[color])
            layer = Image.new("1", (width, height))
            ImageDraw.Draw(layer).polygon(outline, fill=1)
            mask = np.asarray(layer)
            if text_box is not None and mask[_pixels(text_box, width, height)].any():
                continue
            touched = np.unique(owner[mask])
            if any(names[other][1] == color for other in touched if other >= 0):
                continue  # two shapes of one colour would merge
            center = np.mean(outline, axis=0)
            if any(np.hypot(*(center - other)) < MIN_DISTANCE * min(width, height) for other in centers):
                continue
            trial = np.where(mask, np.int8(index), owner)
            sizes = np.bincount(trial[trial >= 0], minlength=index + 1)
            if all(size >= MIN_VISIBLE * area for size, area in zip(sizes, [*areas, mask.sum()], strict=True)):
                break
        else:
            return None
        owner = trial
        areas.append(int(mask.sum()))
        names.append((shape, color))
        centers.append(center)
        edge = tuple(max(0, c - 60) for c in rgb) if rng.random() < 0.5 else rgb
        ImageDraw.Draw(image).polygon(outline, fill=rgb, outline=edge)

    if text_layer is not None:
        image.paste(text_layer[0], mask=text_layer[1])
    if rng.random() < 0.5:
        packed = io.BytesIO()
        image.save(packed, "JPEG", quality=int(rng.integers(40, 95)))
        image = Image.open(packed).convert("RGB")
    items = []
    for index, (shape, color) in enumerate(names):
        mask = owner == index
        items.append(Item(shape, color, _box(mask), mask))
    return Scene(image, background, items, text, text_box)


def _shape(rng: np.random.Generator, shape: str, width: int, height: int) -> list[tuple[float, float]]:
    """The outline of a shape of random size, place, proportions and slight tilt."""
    radius = rng.uniform(0.1, 0.21) * min(width, height)
    tilt = math.radians(rng.uniform(-10, 10))
    stretch = math.sqrt(rng.uniform(0.8, 1.25))
    points = [(r * math.cos(a), r * math.sin(a)) for a, r in _polar(shape)]
    turned = [(x * math.cos(tilt) - y * math.sin(tilt), x * math.sin(tilt) + y * math.cos(tilt)) for x, y in points]
    sized = [(x * radius * stretch, y * radius / stretch) for x, y in turned]
    left, right = min(x for x, _ in sized), max(x for x, _ in sized)
    top, bottom = min(y for _, y in sized), max(y for _, y in sized)
    cx, cy = rng.uniform(1 - left, width - 2 - right), rng.uniform(1 - top, height - 2 - bottom)
    return [(x + cx, y + cy) for x, y in sized]


def _polar(shape: str) -> list[tuple[float, float]]:
    """Corners as (angle, radius), radius about 1."""
    up = -math.pi / 2
    if shape == "circle":
        return [(2 * math.pi * k / 48, 1.0) for k in range(48)]
    if shape == "square":
        return [(math.pi / 4 + math.pi / 2 * k, 1.25) for k in range(4)]
    if shape == "triangle":
        return [(up + 2 * math.pi * k / 3, 1.25) for k in range(3)]
    if shape == "star":
        return [(up + math.pi * k / 5, 1.25 if k % 2 == 0 else 0.5) for k in range(10)]
    arm, reach = 0.36, 1.15  # a cross: half the width of an arm, and its length
    corners = [(arm, reach), (arm, arm), (reach, arm), (reach, -arm), (arm, -arm), (arm, -reach)]
    corners += [(-x, -y) for x, y in corners]
    return [(math.atan2(y, x), math.hypot(x, y)) for x, y in corners]


def _jitter(rng: np.random.Generator, rgb: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(int(np.clip(c * rng.uniform(0.92, 1.08) + rng.uniform(-9, 9), 0, 255)) for c in rgb)


def _pale(rng: np.random.Generator) -> np.ndarray:
    """A colour that no shape has: nearly grey, of any brightness."""
    return np.clip(rng.uniform(25, 240) + rng.uniform(-14, 14, 3), 0, 255)


def _background(rng: np.random.Generator, kind: str, width: int, height: int, scale: float) -> Image.Image:
    base = _pale(rng)
    field: np.ndarray = np.broadcast_to(base, (height, width, 3)).astype(np.float32)
    if kind == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        y, x = np.mgrid[0:height, 0:width]
        along = x / width * math.cos(angle) + y / height * math.sin(angle)
        along = (along - along.min()) / (np.ptp(along) or 1)
        field = base + (_pale(rng) - base) * along[..., None]
    elif kind == "noisy":
        field = field + rng.normal(0, rng.uniform(6, 22), (height, width, 1))
    image = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    if kind == "cluttered":
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(8, 20))):
            color = tuple(int(c) for c in np.clip(0.6 * base + 0.4 * _pale(rng), 0, 255))
            x, y = rng.uniform(0, width), rng.uniform(0, height)
            dx, dy = rng.uniform(10, 90, 2) * scale
            if rng.random() < 0.5:
                draw.ellipse((x - dx, y - dy, x + dx, y + dy), fill=color)
            else:
                draw.polygon([(x, y), (x + dx, y - dy), (x + dx / 2, y + dy)], fill=color)
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 5) * scale))
    return image


def _text(
    rng: np.random.Generator, width: int, height: int
) -> tuple[str, tuple[Image.Image, Image.Image], tuple[float, float, float, float]]:
    """A word or a number on a plate of its own: the text, (picture, paste mask), and the plate's box in 0..1."""
    text = str(rng.integers(100)) if rng.random() < 0.4 else WORDS[rng.integers(len(WORDS))]
    face = font(FONTS[rng.integers(len(FONTS))], round(rng.uniform(0.19, 0.26) * min(width, height)))
    left, top, right, bottom = face.getbbox(text)
    pad = round(TEXT_MARGIN * width)
    w, h = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    x, y = int(rng.integers(1, width - w - 1)), int(rng.integers(1, height - h - 1))
    dark, light = int(rng.integers(0, 45)), int(rng.integers(215, 256))
    paper, ink = (light, dark) if rng.random() < 0.7 else (dark, light)
    picture = Image.new("RGB", (width, height), (paper,) * 3)
    ImageDraw.Draw(picture).text((x + pad - left, y + pad - top), text, fill=(ink,) * 3, font=face)
    plate = Image.new("1", (width, height))
    ImageDraw.Draw(plate).rectangle((x, y, x + w - 1, y + h - 1), fill=1)
    return text, (picture, plate), (x / width, y / height, (x + w) / width, (y + h) / height)


@functools.cache
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = FONT_FOLDER / name
    if not path.is_file():
        raise SystemExit(f"{path} is missing: apt install fonts-dejavu-core fonts-liberation fonts-freefont-ttf")
    return ImageFont.truetype(str(path), size)


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) in 0..1 of what is True in mask [H, W]."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = mask.shape
    return columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height


def _pixels(box: tuple[float, float, float, float], width: int, height: int) -> tuple[slice, slice]:
    x0, y0, x1, y1 = box
    return slice(round(y0 * height), round(y1 * height)), slice(round(x0 * width), round(x1 * width))


def mask_patch(mask: np.ndarray, box: tuple[float, float, float, float]) -> np.ndarray:
    """The mask [H, W] cropped to its box and resized, as big_vision makes training targets: uint8 [64, 64]."""
    crop = mask[_pixels(box, mask.shape[1], mask.shape[0])]
    patch = Image.fromarray(crop.astype(np.uint8) * 255).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(patch)
