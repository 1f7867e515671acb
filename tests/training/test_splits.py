"""Splits are found by the names that tools give them, or made by picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import training_data as data

from pg_mlx.errors import InputError
from pg_mlx.training.dataset import read_dataset, read_to_evaluate
from pg_mlx.training.example import Example
from pg_mlx.training.formats import DataOptions
from pg_mlx.training.splits import divide, find_splits

SCENES = data.labelled_scenes(6)
PARTS = {"train": SCENES[:3], "valid": SCENES[3:5], "test": SCENES[5:]}


def sizes(path: Path, options: DataOptions | None = None) -> dict[str, list[str]]:
    dataset = read_dataset(path, options)
    return {name: [Path(row.image).name for row in getattr(dataset, name)] for name in PARTS}


WANTED = {name: [scene.name for scene in scenes] for name, scenes in PARTS.items()}


def test_roboflow_new_and_coco(tmp_path: Path) -> None:
    for name, scenes in PARTS.items():
        data.roboflow_rows(tmp_path / "rows", scenes, name)
        data.coco(tmp_path / "coco" / name, scenes, "box")
    assert sizes(tmp_path / "rows") == sizes(tmp_path / "coco") == WANTED


def test_roboflow_old_and_mlx_lm(tmp_path: Path) -> None:
    for name, scenes in PARTS.items():
        rows = data.roboflow_rows(tmp_path / "made", scenes, name)
        for folder, file in (("old/dataset", f"_annotations.{name}.jsonl"), ("mlx", f"{name}.jsonl")):
            data.save_pictures(tmp_path / folder, scenes)
            shutil.copy(rows, tmp_path / folder / file)
    assert sizes(tmp_path / "old") == sizes(tmp_path / "old" / "dataset") == sizes(tmp_path / "mlx") == WANTED


def test_cocos_own_layout(tmp_path: Path) -> None:
    for name, scenes in {"train": SCENES[:4], "val": SCENES[4:]}.items():
        file = data.coco(tmp_path / "made", scenes, "polygon")
        data.save_pictures(tmp_path / f"{name}2017", scenes)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "annotations" / f"instances_{name}2017.json")
    shutil.rmtree(tmp_path / "made")
    found = sizes(tmp_path)
    assert (len(found["train"]), len(found["valid"]), len(found["test"])) == (4, 2, 0)


def test_folders_of_texts(tmp_path: Path) -> None:
    for name, folder in (("train", "training"), ("valid", "val"), ("test", "test")):
        data.texts(tmp_path / folder, PARTS[name])
    assert sizes(tmp_path, DataOptions(prefix="caption en")) == WANTED


def test_what_may_be_one_split_or_another_is_refused(tmp_path: Path) -> None:
    data.messages_rows(tmp_path, SCENES[:1])
    shutil.copy(tmp_path / "train.jsonl", tmp_path / "_annotations.train.jsonl")
    with pytest.raises(InputError, match="may both be the train split"):
        find_splits(tmp_path)
    (tmp_path / "_annotations.train.jsonl").rename(tmp_path / "test.jsonl")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(InputError, match="holds a test split, but none that is called train"):
        read_dataset(tmp_path)
    name, rows = read_to_evaluate(tmp_path)
    assert name == "test" and len(rows) == 1
    with pytest.raises(InputError, match="holds no valid split, only test"):
        read_to_evaluate(tmp_path, splits=["valid"])


def test_what_is_evaluated(tmp_path: Path) -> None:
    for name, scenes in PARTS.items():
        data.coco(tmp_path / name, scenes, "box")
    assert read_to_evaluate(tmp_path) == ("test", read_dataset(tmp_path).test)
    assert read_to_evaluate(tmp_path, splits=["valid"]) == ("valid", read_dataset(tmp_path).valid)
    assert read_to_evaluate(tmp_path / "train")[0] == "train"


def test_prompts_name_the_classes_of_all_splits(tmp_path: Path) -> None:
    few = min(SCENES, key=lambda scene: len({thing.label for thing in scene.objects}))
    data.write_json(tmp_path / "train" / "via_region_data.json", via_of(tmp_path / "train", (few,)))
    data.write_json(tmp_path / "valid" / "via_region_data.json", via_of(tmp_path / "valid", SCENES))
    dataset = read_dataset(tmp_path)
    labels = {thing.label for scene in SCENES for thing in scene.objects}
    assert {row.prefix for row in (*dataset.train, *dataset.valid)} == {f"detect {' ; '.join(dataset.classes)}"}
    assert set(dataset.classes) == labels > {thing.label for thing in few.objects}


def test_pictures_in_two_splits_are_noted(tmp_path: Path) -> None:
    data.save_pictures(tmp_path, SCENES[:2])
    for name, names in (("train", ("000.png", "001.png")), ("valid", ("001.png",))):
        rows = [{"image": image, "prefix": "ocr", "suffix": "x"} for image in names]
        data.write_lines(tmp_path / f"{name}.jsonl", rows)
    assert read_dataset(tmp_path).notes == ("pictures of valid that are in train too, so scores will be too good: 1",)


def test_copies_of_pictures_are_known(tmp_path: Path) -> None:
    """A copy in another split is noted, and one that is divided off stays with the picture it is a copy of."""
    for name in ("train", "valid"):
        data.save_pictures(tmp_path / name, SCENES[:2])
        rows = [{"image": "001.png", "prefix": "ocr", "suffix": "x"}]
        data.write_lines(tmp_path / name / "annotations.jsonl", rows)
    assert read_dataset(tmp_path).notes == ("pictures of valid that are in train too, so scores will be too good: 1",)
    examples = []
    for number in range(20):
        for name in (f"{number}.png", f"{number} copy.png"):
            (tmp_path / name).write_bytes(bytes([number]))
            examples.append(Example(str(tmp_path / name), "ocr", "x"))
    train, valid = divide(examples, 0.25, seed=1)
    names = [{Path(str(row.image)).stem.split()[0] for row in rows} for rows in (train, valid)]
    assert not names[0] & names[1] and (len(train), len(valid)) == (30, 10)


def via_of(folder: Path, scenes: tuple[data.Labelled, ...]) -> dict:
    data.save_pictures(folder, scenes)
    return {scene.name: {"filename": scene.name, "regions": data.via_regions(scene)} for scene in scenes}


def test_rows_of_one_picture_stay_together() -> None:
    rows = [Example(f"/data/{n % 40}.png", "ocr", str(n)) for n in range(200)]
    train, valid = divide(rows, 0.1, seed=3)
    assert len(valid) == 4 * 5 and len(train) == 36 * 5
    assert not {row.image for row in train} & {row.image for row in valid}
    moved = [Example(row.image.replace("/data", "/other/place"), row.prefix, row.suffix) for row in rows]
    assert [row.suffix for row in divide(moved, 0.1, seed=3)[1]] == [row.suffix for row in valid]
    assert [row.suffix for row in divide(rows, 0.1, seed=4)[1]] != [row.suffix for row in valid]


@pytest.mark.parametrize(("share", "pictures", "expected"), [(0, 10, 0), (0.1, 1, 0), (0.1, 2, 1), (0.99, 3, 2)])
def test_small_data(share: float, pictures: int, expected: int) -> None:
    rows = [Example(f"{n}.png", "ocr", "") for n in range(pictures)]
    train, valid = divide(rows, share, seed=0)
    assert (len(train), len(valid)) == (pictures - expected, expected)


@pytest.mark.parametrize("share", [-0.1, 1, float("nan")])
def test_bad_shares(share: float) -> None:
    with pytest.raises(InputError, match="validation share"):
        divide([], share, seed=0)


def test_the_digest_follows_the_data_and_not_its_place(tmp_path: Path) -> None:
    data.roboflow_rows(tmp_path / "a", SCENES)
    first = read_dataset(tmp_path / "a").digest()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert read_dataset(tmp_path / "b").digest() == first
    assert read_dataset(tmp_path / "b", seed=1).digest() != first
    rows = tmp_path / "b" / "train" / "annotations.jsonl"
    rows.write_text(rows.read_text().replace("circle", "cirkle"))
    assert read_dataset(tmp_path / "b").digest() != first
