"""Goldens of training, tiny models that learn, and how far two sets of tensors are apart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import mlx.core as mx
import numpy as np

from helpers.paths import GOLDEN
from pg_mlx import PaliGemma, load_model
from pg_mlx.checkpoint.adapters.peft_writer import peft_name
from pg_mlx.checkpoint.disassemble import canonical_arrays
from pg_mlx.checkpoint.layouts import PATCH_KERNEL
from pg_mlx.training.batch import TrainingBatch

TRAINING = GOLDEN / "training"
FAMILIES = ("pg1", "pg2")
Arrays = dict[str, mx.array]


@cache
def golden(name: str) -> Arrays:
    """A file of the goldens."""
    return mx.load(str(TRAINING / f"{name}.safetensors"))


def fresh(family: str, dtype: str = "float32") -> PaliGemma:
    """The checkpoint that the goldens were made with."""
    return load_model(GOLDEN / f"{family}_new", dtype=dtype)


def micro(family: str, number: int) -> TrainingBatch:
    """A micro-batch of the goldens."""
    data = golden(f"{family}_batches")

    def numbers(name: str) -> np.ndarray:
        return np.array(data[f"micro{number}.{name}"])

    return TrainingBatch(
        pixels=data["pixels"],
        features=None,
        image_index=numbers("image_index").tolist(),
        prefix_ids=numbers("prefix_ids"),
        prefix_lengths=numbers("prefix_lengths"),
        suffix_ids=numbers("suffix_ids"),
        suffix_lengths=numbers("suffix_lengths"),
    )


def joined(*batches: TrainingBatch) -> TrainingBatch:
    """All rows as one batch; they have the same pictures."""

    def stacked(name: str) -> np.ndarray:
        arrays = [getattr(batch, name) for batch in batches]
        width = max(array.shape[-1] for array in arrays)
        if name.endswith("ids"):
            arrays = [np.pad(array, [(0, 0), (0, width - array.shape[1])]) for array in arrays]
        return np.concatenate(arrays)

    names = ("prefix_ids", "prefix_lengths", "suffix_ids", "suffix_lengths")
    index = [image for batch in batches for image in batch.image_index]
    return TrainingBatch(batches[0].pixels, batches[0].features, index, *map(stacked, names))


def loss_of(family: str, name: str) -> np.ndarray:
    """A loss of the goldens, or several."""
    return np.array(golden(f"{family}_batches")[name])


def full_names(model: PaliGemma, arrays: Mapping[str, mx.array]) -> Arrays:
    """Arrays by path in the model, under transformers' names and in its layout."""
    named = {}
    for name, array in canonical_arrays(model.config, arrays):
        module, _, part = name.rpartition(".")
        named[f"{peft_name(module)}.{part}"] = array.transpose(0, 3, 1, 2) if name == PATCH_KERNEL else array
    return named


def kind_of(arrays: Mapping[str, mx.array], kind: str, what: str) -> Arrays:
    """The tensors of one kind of adapter at one time, by PEFT's names."""
    start = f"{kind}/{what}/"
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


def relative(found: Mapping[str, mx.array], wanted: Mapping[str, mx.array]) -> tuple[float, float, str]:
    """||found - wanted|| / ||wanted|| of all tensors together, of the worst one, and which that is."""
    assert found.keys() == wanted.keys(), f"{set(found) ^ set(wanted)}"
    ours, theirs = ({name: np.array(array, np.float64) for name, array in one.items()} for one in (found, wanted))
    apart = {name: np.linalg.norm(ours[name] - array) for name, array in theirs.items()}
    length = {name: np.linalg.norm(array) for name, array in theirs.items()}
    worst = max(apart, key=lambda name: apart[name] / max(length[name], 1e-30))
    whole = np.linalg.norm(list(apart.values())) / np.linalg.norm(list(length.values()))
    return float(whole), float(apart[worst] / max(length[worst], 1e-30)), worst
