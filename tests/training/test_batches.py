"""Batches: which rows a step has, their ids, and their pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from helpers import training_data as data

from pg_mlx.demo import CHECKPOINT
from pg_mlx.errors import InputError
from pg_mlx.processor import Processor
from pg_mlx.regions.mask_vae import MaskEncoder
from pg_mlx.training.batches import Batches, BatchOptions, Mix, parse_mix
from pg_mlx.training.dataset import read_dataset
from pg_mlx.training.example import Example
from pg_mlx.training.features import ImageFeatures
from pg_mlx.training.formats import DataOptions
from pg_mlx.training.order import RowOrder, share_of
from pg_mlx.training.regions import RegionWriter


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(CHECKPOINT, 112)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Example, ...]:
    path = data.coco(tmp_path_factory.mktemp("rows"), data.labelled_scenes(10), "polygon")
    return read_dataset(path, DataOptions(per_class=True), val_share=0).train


# --- order ---------------------------------------------------------------------------------------------


def test_each_row_once_an_epoch_and_another_order_each_time() -> None:
    order = RowOrder(50, seed=3)
    epochs = [order.rows(50 * epoch, 50) for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(50))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.rows(45, 10) == epochs[0][45:] + epochs[1][:5], "a batch may go across the end of an epoch"
    assert RowOrder(50, 3).rows(50, 50) == epochs[1]
    assert RowOrder(50, 4).rows(0, 50) != epochs[0]


def test_rows_of_like_length_are_together(rows: tuple[Example, ...], processor: Processor) -> None:
    batches = Batches(rows, processor, BatchOptions(batch_size=12)).batches(0, micro_batch_size=4)
    lengths = np.concatenate([batch.prefix_lengths + batch.suffix_lengths for batch, _ in batches])
    assert (np.diff(lengths) >= 0).all() and len(lengths) == 12
    assert sorted(number for _, numbers in batches for number in numbers) == list(range(12))


def test_shares_add_up() -> None:
    parts = [share_of(8 * step, 8, 0.3) for step in range(10)]
    assert sum(count for _, count in parts) == 24
    assert [first for first, _ in parts] == np.cumsum([0, *(count for _, count in parts[:-1])]).tolist()
    assert [share_of(4 * step, 4, 0.25)[1] for step in range(5)] == [1] * 5


# --- ids -----------------------------------------------------------------------------------------------


def test_ids_are_those_of_the_processor(rows: tuple[Example, ...], processor: Processor) -> None:
    batches = Batches(rows, processor, BatchOptions(batch_size=6, multiple=8))
    own, mixed = batches.rows(1)
    ((batch, numbers),) = batches.batches(1)
    assert mixed == [] and len(own) == 6
    assert batch.prefix_ids.shape[1] % 8 == batch.suffix_ids.shape[1] % 8 == 0
    assert batch.prefix_ids.dtype == batch.suffix_lengths.dtype == np.int32
    for number, row in enumerate(own[number] for number in numbers):
        prefix, suffix = processor.prompt_ids(row.prefix), processor.suffix_ids(row.suffix)
        assert batch.prefix_ids[number, : batch.prefix_lengths[number]].tolist() == prefix
        assert batch.suffix_ids[number, : batch.suffix_lengths[number]].tolist() == suffix
        assert not batch.prefix_ids[number, len(prefix) :].any() and not batch.suffix_ids[number, len(suffix) :].any()
        pixels = np.array(batch.pixels[batch.image_index[number]])
        assert np.array_equal(pixels, processor.pixels(row.image))
    assert batch.pixels.shape[0] == len({row.image for row in own}), "each picture once"


def test_two_processes_and_micro_batches_have_the_rows_of_one(rows: tuple[Example, ...], processor: Processor) -> None:
    options = BatchOptions(batch_size=7, augment=("flip", "crop", "order", "color"), seed=4)
    whole = described(Batches(rows, processor, options).batches(3))
    shared = [
        described(Batches(rows, processor, replace(options, rank=rank, size=2)).batches(3, micro_batch_size=2))
        for rank in (0, 1)
    ]
    assert [len(part) for part in shared] == [4, 3]
    assert shared[0] == whole[::2] and shared[1] == whole[1::2]
    assert described(Batches(rows, processor, options).batches(3)) == whole
    assert described(Batches(rows, processor, options).batches(4)) != whole


def described(batches: list) -> list[tuple]:
    """Of each row: its number in the step, its ids and its pixels."""
    return [
        (
            numbers[row],
            tuple(batch.prefix_ids[row, : batch.prefix_lengths[row]].tolist()),
            tuple(batch.suffix_ids[row, : batch.suffix_lengths[row]].tolist()),
            np.array(batch.pixels[batch.image_index[row]]).tobytes(),
        )
        for batch, numbers in batches
        for row in range(len(batch.image_index))
    ]


def test_mixed_rows_take_their_share(rows: tuple[Example, ...], processor: Processor) -> None:
    old = tuple(replace(row, prefix="caption en", suffix=f"old {number}") for number, row in enumerate(rows[:5]))
    batches = Batches(rows, processor, BatchOptions(batch_size=8), mixes=[Mix(old, 0.25)])
    own, mixed = Counter[str](), Counter[str]()
    for step in range(batches.steps()):
        of_data, of_mix = batches.rows(step)
        assert (len(of_data), len(of_mix)) == (6, 2)
        own.update(f"{row.image} {row.prefix}" for row in of_data)
        mixed.update(row.suffix for row in of_mix)
    assert batches.steps() == -(-len(rows) // 6)
    assert len(own) == len(rows) and set(own.values()) <= {1, 2}
    assert max(mixed.values()) - min(mixed.values()) <= 1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_several_mixes_and_small_batches(rows: tuple[Example, ...], processor: Processor, batch_size: int) -> None:
    mixes = [Mix((replace(rows[0], prefix=name),), share) for name, share in (("one", 0.4), ("two", 0.45))]
    batches = Batches(rows, processor, BatchOptions(batch_size=batch_size), mixes=mixes)
    steps = 400 // batch_size
    found, own = Counter[str](), list[Example]()
    for step in range(steps):
        of_data, mixed = batches.rows(step)
        assert len(of_data) + len(mixed) == batch_size
        found.update(row.prefix for row in mixed)
        own += of_data
    rows_in_all = steps * batch_size
    assert abs(found["one"] - 0.4 * rows_in_all) <= 1 and abs(found["two"] - 0.45 * rows_in_all) <= 1
    first = own[: len(rows)]
    assert len({(row.image, row.prefix) for row in first}) == len(rows), "none is left out, none comes twice"


def test_more_epochs_are_more_steps(rows: tuple[Example, ...], processor: Processor) -> None:
    batches = Batches(rows[:10], processor, BatchOptions(batch_size=4))
    assert [batches.steps(epochs) for epochs in (0.1, 0.4, 1, 2, 10)] == [1, 1, 3, 5, 25]
    assert len(Batches(rows[:1], processor, BatchOptions(batch_size=4)).rows(0)[0]) == 4


def test_masks_are_encoded_once(tmp_path: Path, processor: Processor) -> None:
    encoder, seen = MaskEncoder.load(CHECKPOINT / "mask_decoder.weights"), list[int]()

    def counted(masks: np.ndarray) -> mx.array:
        seen.append(len(masks))
        return encoder(masks)

    path = data.coco(tmp_path, data.labelled_scenes(4), "polygon")
    rows = read_dataset(path, DataOptions(task="segment"), val_share=0).train
    batches = Batches(rows, processor, BatchOptions(batch_size=4), writer=RegionWriter(counted))
    ((first, _),) = batches.batches(0)
    assert sum(seen) == sum(len(row.objects) for row in rows)
    batches.batches(1)
    assert sum(seen) == sum(len(row.objects) for row in rows)
    labels = [" ; ".join(f" {one.label}" for one in row.objects) for row in rows]
    wanted = [20 * len(row.objects) + len(processor.suffix_ids(text)) for row, text in zip(rows, labels, strict=True)]
    assert sorted(first.suffix_lengths.tolist()) == sorted(wanted)
    with pytest.raises(InputError, match="need the mask encoder"):
        Batches(rows, processor, BatchOptions(batch_size=4)).batches(0)


# --- features ------------------------------------------------------------------------------------------


def encode(pixels: mx.array) -> mx.array:
    """[I, 2, 3], of the pixels' own."""
    return mx.stack([pixels[:, :3, 0, 0], pixels[:, :3, 1, 1]], axis=1)


def test_features_are_those_of_the_pixels(rows: tuple[Example, ...], processor: Processor) -> None:
    calls = list[int]()

    def counted(pixels: mx.array) -> mx.array:
        calls.append(pixels.shape[0])
        return encode(pixels)

    kept = ImageFeatures(counted)
    options = BatchOptions(batch_size=5)
    with_features = Batches(rows, processor, options, features=kept)
    for step in range(2 * with_features.steps()):
        ((batch, _),) = with_features.batches(step)
        ((plain, _),) = Batches(rows, processor, options).batches(step)
        assert batch.pixels is None and batch.image_index == plain.image_index
        assert np.array_equal(np.array(batch.features), np.array(encode(plain.pixels)))
    assert sum(calls) == len({row.image for row in rows}), "each picture was encoded once"
    assert kept.held_bytes == sum(calls) * 2 * 3 * 4


def test_features_stay_within_their_bytes(rows: tuple[Example, ...], processor: Processor) -> None:
    kept = ImageFeatures(encode, limit_bytes=3 * 24 + 5)
    batches = Batches(rows, processor, BatchOptions(batch_size=5), features=kept)
    for step in range(batches.steps()):
        ((batch, _),) = batches.batches(step)
        ((plain, _),) = Batches(rows, processor, BatchOptions(batch_size=5)).batches(step)
        assert np.array_equal(np.array(batch.features), np.array(encode(plain.pixels)))
        assert kept.held_bytes <= 3 * 24
    assert kept.held_bytes == 3 * 24


def test_changed_pictures_are_not_kept(rows: tuple[Example, ...], processor: Processor) -> None:
    kept = ImageFeatures(encode)
    Batches(rows, processor, BatchOptions(batch_size=5, augment=("crop",)), features=kept).batches(0)
    assert kept.held_bytes == 0


# --- what is refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["data", "data=", "=0.5", "data=0", "data=1", "data=x", "data=nan", "data=-0.1"])
def test_bad_mixes(text: str) -> None:
    with pytest.raises(InputError, match="PATH=SHARE"):
        parse_mix(text)


def test_mixes_and_options(rows: tuple[Example, ...], processor: Processor) -> None:
    assert parse_mix("a=b/data=0.25") == (Path("a=b/data"), 0.25)
    with pytest.raises(InputError, match="less than 1 together"):
        Batches(rows, processor, mixes=[Mix(rows, 0.5), Mix(rows, 0.5)])
    with pytest.raises(InputError, match="no row to learn from"):
        Batches([], processor)
    for bad in ({"batch_size": 0}, {"multiple": 0}, {"rank": 1}, {"batch_size": 2, "size": 3}, {"seed": -1}):
        with pytest.raises(InputError):
            BatchOptions(**bad)
