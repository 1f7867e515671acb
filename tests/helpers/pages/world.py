"""A folder in which the commands on the pages find what they name: pictures, checkpoints, data to learn from.

The repositories of the hub are there as a cache. Each holds the bundled demo, in the form of a download.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from helpers.commands import tiny_checkpoint
from helpers.paths import CAT, ROOT
from pg_mlx import convert

DEMO = ROOT / "pg_mlx" / "demo"
REPOSITORIES = (
    *("google/paligemma2-3b-mix-448", "google/paligemma2-3b-mix-224", "google/paligemma2-3b-pt-224"),
    *("google/paligemma2-3b-pt-448",),
)
LINKS = ("pg_mlx", "examples", "tools", "docs", "generate.py", "convert.py", "train.py")
COMMIT = "0" * 40


def make(folder: Path) -> Path:
    """What all pages share: checkpoints, the hub's cache, and what each page gets a copy of. Returns the folder."""
    float_ = folder / "float"
    convert(DEMO / "checkpoint", float_, dequantize=True, check=False)
    for name in REPOSITORIES:
        repository = folder / "hub" / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        (repository / "snapshots").mkdir()
        shutil.copytree(float_, repository / "snapshots" / COMMIT)
    tiny_checkpoint(folder / "tiny")  # random, for what would take long with the demo
    convert(float_, folder / "pg2-4bit", q_recipe="balanced", check=False)
    read = folder / "read"
    read.mkdir()
    _pictures(read)
    for name in ("coins", "old", "cells"):
        _data(read / name)
    return folder


def furnish(folder: Path, shared: Path, text: str) -> None:
    """A page's own folder, with what its commands read.

    text: the page. What one of its own commands makes is not put there."""
    shutil.copytree(shared / "read", folder, dirs_exist_ok=True)
    for name in LINKS:
        (folder / name).symlink_to(ROOT / name)
    if "--mlx-path ./pg2-4bit" not in text:
        shutil.copytree(shared / "pg2-4bit", folder / "pg2-4bit")
    (folder / "M").symlink_to(shared / "float")
    (folder / "SRC").symlink_to(shared / "tiny")


def _pictures(folder: Path) -> None:
    scenes = ("scene", "clutter", "portrait")
    shutil.copy(CAT, folder / "cat.jpg")
    for name in ("dog", "sea", "both", "new", "photo", "a", "b", "before", "after"):
        Image.open(DEMO / "scene.png").convert("RGB").save(folder / f"{name}.jpg")
    Image.open(DEMO / "dog.png").save(folder / "other.tif")
    pages = [Image.open(DEMO / f"{name}.png").convert("RGB") for name in scenes]
    pages[0].save(folder / "scan.tif", save_all=True, append_images=pages[1:])
    (folder / "photos").mkdir()
    for name in scenes:
        shutil.copy(DEMO / f"{name}.png", folder / "photos")
    (folder / "PHOTOS").mkdir()
    for number in range(16):
        Image.open(DEMO / "scene.png").rotate(number * 3).save(folder / "PHOTOS" / f"{number:02}.png")


def _data(folder: Path) -> None:
    """Four pictures with a coin, as COCO."""
    folder.mkdir()
    images, annotations = [], []
    for number in range(1, 5):
        picture = Image.open(DEMO / "scene.png").convert("RGB").rotate(90 * number)
        picture.save(folder / f"{number}.png")
        width, height = picture.size
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        corner = 20 * number
        outline = [corner, corner, corner + 50, corner, corner + 50, corner + 50, corner, corner + 50]
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [corner, corner, 50, 50],
                "segmentation": [outline],
            }
        )
    content = {"images": images, "categories": [{"id": 1, "name": "coin"}], "annotations": annotations}
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
