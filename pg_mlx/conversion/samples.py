"""Pictures and prompts to compare two checkpoints on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files.equal import first_equals
from ..processor import load_image
from ..processor.formats import PICTURE_SUFFIXES

if TYPE_CHECKING:
    from PIL import Image

    from ..paligemma import PaliGemma
    from ..processor import Processor

PROMPTS = ("caption en", "detect object", "ocr", "answer en what is in the picture?")
MAX_PICTURES = 32
MAX_QUESTIONS = 5
"""About one picture that calibrates. Other pictures say more than more questions."""

MIN_CALIBRATION, MAX_CALIBRATION = 16, 256
"""Pictures of a calibration. Fewer do harm; more take longer than they are worth."""
_SIZES = ((640, 480), (480, 640), (512, 512), (800, 450))
_WORDS = ("exit", "open", "coffee", "market", "42", "station", "north", "1879", "bread", "street", "7", "tickets")


@dataclass(frozen=True)
class Sample:
    """A question: image is anything that `processor.load_image` takes. One picture may serve several."""

    image: Any
    prompt: str

    @property
    def picture(self) -> str | int:
        """The same for samples with the same picture."""
        return str(self.image) if isinstance(self.image, (str, Path)) else id(self.image)


def distinct_pictures(samples: Sequence[Sample]) -> int:
    """How many pictures the samples are about."""
    return len({sample.picture for sample in samples})


@dataclass(frozen=True)
class AskedPictures:
    """Pictures with questions of their own, in the place of a folder of pictures."""

    folder: Path
    """Where the pictures are."""
    samples: Sequence[Sample]
    """Each image a path. A picture may have several."""
    scores: Callable[[PaliGemma, Processor, Sequence[Sample]], dict[str, float]] | None = None
    """What a model scores on some of the samples, by name in 0..1, where their right answers are known."""

    def __fspath__(self) -> str:
        """The folder, where a path is wanted."""
        return str(self.folder)

    def by_picture(self) -> list[list[Sample]]:
        """The samples of each picture, by name; of equal pictures the first, and at most MAX_CALIBRATION."""
        found: dict[Path, list[Sample]] = {}
        for sample in sorted(self.samples, key=lambda sample: str(sample.image)):
            found.setdefault(Path(sample.image), []).append(sample)
        return [found[path] for path in itertools.islice(_different(found), MAX_CALIBRATION)]


Calibration = str | Path | AskedPictures
"""A folder of pictures, or pictures with questions of their own."""


def default_samples(folder: Calibration | None = None) -> list[Sample]:
    """Every prompt of PROMPTS about each picture: the first MAX_PICTURES image files of the folder, by name, or,
    without a folder, four drawings that are the same everywhere. Pictures with questions of their own have up to
    as many of those.

    Photographs say more than drawings. Raises InputError if there is no picture, and one that names all pictures that
    cannot be read.
    """
    if isinstance(folder, AskedPictures):
        return _judging(folder.by_picture())
    pictures = (
        [_drawing(seed) for seed in range(len(_SIZES))] if folder is None else _image_files(Path(folder), MAX_PICTURES)
    )
    _check(pictures)
    return [Sample(picture, prompt) for picture in pictures for prompt in PROMPTS]


def calibration_samples(
    folder: Calibration, prompts: Sequence[str] = (), needed: str = "gptq needs {} or more, --q-method mse needs none"
) -> tuple[list[Sample], list[Sample]]:
    """What calibrates and what judges: three of four pictures of the folder, by name, and every fourth.

    A picture that calibrates has one of the prompts, which take turns; one that judges has up to four of them. Pictures
    with questions of their own have up to MAX_QUESTIONS and four of those. There are at most MAX_CALIBRATION pictures,
    and MAX_PICTURES that judge. Equal ones count once: else what calibrates would judge. needed: what a message says if
    there are fewer than MIN_CALIBRATION. Raises InputError then, for prompts beside the pictures' own questions, and
    one that names all pictures that cannot be read.
    """
    if isinstance(folder, AskedPictures):
        if prompts:
            raise InputError("calibration prompts are for pictures without questions of their own")
        asked = folder.by_picture()
        _check_enough(folder.folder, len(asked), needed)
        ours = [each[:MAX_QUESTIONS] for index, each in enumerate(asked) if index % 4 != 3]
        return list(itertools.chain.from_iterable(ours)), _judging(asked[3::4])
    prompts = tuple(prompts) or PROMPTS
    paths = _image_files(Path(folder), MAX_CALIBRATION)
    _check_enough(folder, len(paths), needed)
    _check(paths)
    judging = paths[3::4]
    calibrating = [path for path in paths if path not in set(judging)]
    turns = itertools.cycle(prompts)
    one_each = [Sample(path, next(turns)) for path in calibrating]
    some = min(len(PROMPTS), len(prompts))
    return one_each, [Sample(path, next(turns)) for path in judging[:MAX_PICTURES] for _ in range(some)]


def _judging(asked: Sequence[Sequence[Sample]]) -> list[Sample]:
    return [sample for samples in asked[:MAX_PICTURES] for sample in samples[: len(PROMPTS)]]


def _check_enough(folder: str | Path, count: int, needed: str) -> None:
    if count < MIN_CALIBRATION:
        pictures = f"{count} different picture{'s' if count > 1 else ''}"
        raise InputError(f"{folder} holds {pictures}; {needed.format(MIN_CALIBRATION)}")


def _image_files(folder: Path, most: int) -> list[Path]:
    """The first image files of a folder, by name; of equal ones the first. Raises InputError if there is none."""
    if not folder.is_dir():
        raise InputError(f"no such folder of pictures: {folder}")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
    )
    if not paths:
        raise InputError(f"{folder} holds no pictures")
    return list(itertools.islice(_different(paths), most))


def _different(paths: Iterable[Path]) -> Iterator[Path]:
    """Those with other bytes than all before them. Copies are common: of downloads, and of augmented data."""
    first, second = itertools.tee(paths)
    return (path for path, equal in zip(first, first_equals(second), strict=True) if path is equal)


def _check(pictures: Sequence[Any]) -> None:
    """Raises InputError if some cannot be read."""
    problems = []
    for picture in pictures:
        try:
            load_image(picture)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(f"{len(problems)} of {len(pictures)} pictures cannot be used: {'; '.join(problems)}")


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
