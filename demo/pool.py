"""Scenes rendered once, kept on disk as arrays, so that training never waits for Pillow.

pixels uint8 [N, 112, 112, 3] is what the processor would make of each picture; truth holds the scenes without pictures;
owners int8 [N, 8, 8] says which item (or TEXT, or NOTHING) covers the middle of each patch.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from multiprocessing import Pool as Processes
from pathlib import Path

import numpy as np
from PIL import Image

from demo.scenes import Item, Scene, make_scene, mask_patch
from demo.tasks import Codes

SIDE, PATCH = 112, 14
PATCHES = SIDE // PATCH
NOTHING, TEXT = -1, 100


@dataclass
class Pool:
    pixels: np.ndarray
    owners: np.ndarray
    truth: list[Scene]
    codes: list[np.ndarray]
    """Per scene int16 [items, 16]; empty until a mask VAE is there."""


def _render(seed: int) -> tuple[np.ndarray, np.ndarray, Scene, list[np.ndarray]]:
    scene = make_scene(seed)
    pixels = np.asarray(scene.image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    owners = np.full((PATCHES, PATCHES), NOTHING, np.int8)
    width, height = scene.image.size
    middle = (np.arange(PATCHES) + 0.5) / PATCHES
    rows, columns = (middle * height).astype(int), (middle * width).astype(int)
    for index, item in enumerate(scene.items):
        owners[item.mask[np.ix_(rows, columns)]] = index
    if scene.text_box is not None:
        x0, y0, x1, y1 = scene.text_box
        inside = (middle[:, None] >= y0) & (middle[:, None] < y1) & (middle >= x0) & (middle < x1)
        owners[inside] = TEXT
    patches = [mask_patch(item.mask, item.box) for item in scene.items]
    bare = [replace(item, mask=np.empty(0)) for item in scene.items]
    unpictured = replace(scene, image=None, items=bare)  # type: ignore[arg-type]  # the pool has the pixels
    return pixels, owners, unpictured, patches


def render(seeds: range, processes: int = 2) -> tuple[Pool, list[list[np.ndarray]]]:
    """The pool of some seeds, and each item's mask as uint8 [64, 64]."""
    with Processes(processes) as workers:
        done = list(workers.imap(_render, seeds, chunksize=256))
    pixels, owners, truth, masks = zip(*done, strict=True)
    return Pool(np.stack(pixels), np.stack(owners), list(truth), []), list(masks)


def save(pool: Pool, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "pixels.npy", pool.pixels)
    np.save(folder / "owners.npy", pool.owners)
    (folder / "truth.pickle").write_bytes(pickle.dumps((pool.truth, pool.codes)))


def load(folder: Path) -> Pool:
    """A pool that `save` wrote here; pixels stay on disk until they are used."""
    truth, codes = pickle.loads((folder / "truth.pickle").read_bytes())
    return Pool(np.load(folder / "pixels.npy", mmap_mode="r"), np.load(folder / "owners.npy"), truth, codes)


def code_lookup(pool: Pool, index: int) -> Codes:
    """For `tasks`: an item of scene `index` -> its 16 codes."""
    scene, codes = pool.truth[index], pool.codes[index]

    def codes_of(item: Item) -> list[int]:
        return codes[next(i for i, other in enumerate(scene.items) if other is item)].tolist()

    return codes_of
