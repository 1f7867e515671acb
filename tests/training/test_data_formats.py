"""Every format gives the same examples for the same labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import training_data as data
from PIL import Image

from demo.scenes import SHAPES
from pg_mlx.demo import CHECKPOINT
from pg_mlx.errors import InputError
from pg_mlx.processor import Processor
from pg_mlx.regions.mask_vae import MaskEncoder
from pg_mlx.regions.paste import crop
from pg_mlx.training.batches import Batches, BatchOptions
from pg_mlx.training.dataset import Dataset, read_dataset
from pg_mlx.training.formats import DataOptions, find
from pg_mlx.training.regions import RegionWriter

SCENES = 50


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(CHECKPOINT, 112)


@pytest.fixture(scope="module")
def encoder() -> MaskEncoder:
    return MaskEncoder.load(CHECKPOINT / "mask_decoder.weights")


def ids_of(dataset: Dataset, processor: Processor, writer: RegionWriter | None = None) -> list[tuple]:
    rows = (writer or RegionWriter(None)).written(dataset.train)
    return [
        (Path(row.image).name, tuple(processor.prompt_ids(row.prefix)), tuple(processor.suffix_ids(row.suffix)))
        for row in rows
    ]


def test_six_formats_have_the_same_ids(tmp_path: Path, processor: Processor) -> None:
    scenes = data.labelled_scenes(SCENES)
    read = {
        "roboflow": read_dataset(data.roboflow_rows(tmp_path / "a", scenes).parents[1], val_share=0),
        "messages": read_dataset(data.messages_rows(tmp_path / "m", scenes).parent, val_share=0),
        "big_vision": read_dataset(
            data.big_vision_rows(tmp_path / "b", scenes),
            DataOptions(prefix=data.prefix_of(), images=tmp_path / "b" / "pictures"),
            val_share=0,
        ),
        **{
            form: read_dataset(data.coco(tmp_path / form, scenes, form).parent, val_share=0)
            for form in ("box", "polygon", "rle", "runs")
        },
        "via": read_dataset(data.via(tmp_path / "v", scenes), val_share=0),
        "via csv": read_dataset(data.via_csv(tmp_path / "c", scenes), DataOptions(classes=SHAPES), val_share=0),
    }
    wanted = ids_of(read["roboflow"], processor)
    assert len(wanted) == SCENES
    assert {name: ids_of(dataset, processor) == wanted for name, dataset in read.items()} == dict.fromkeys(read, True)


def test_masks_of_all_formats_have_the_codes_of_the_encoder(
    tmp_path: Path, processor: Processor, encoder: MaskEncoder
) -> None:
    scenes = data.labelled_scenes(12)
    options = DataOptions(task="segment")
    sources = [data.coco(tmp_path / form, scenes, form) for form in ("polygon", "rle", "runs")]
    sources.append(data.via(tmp_path / "v", scenes))
    ids = [ids_of(read_dataset(path, options, val_share=0), processor, RegionWriter(encoder)) for path in sources]
    assert all(found == ids[0] for found in ids)
    (first, *_) = RegionWriter(encoder).written(read_dataset(sources[0], options, val_share=0).train)
    record, one = first.suffix.split(" ; ")[0], first.objects[0]
    left, top, right, bottom = map(int, one.box)
    codes = np.array(encoder(crop(one.mask.bitmap(), (left, top, right, bottom))[None]))[0]
    assert record[36:] == "".join(f"<seg{code:03}>" for code in codes) + f" {one.label}"
    width, height = first.image_size
    assert [int(record[at : at + 4]) for at in (4, 13, 22, 31)] == [
        round(place * 1023) for place in (top / height, left / width, bottom / height, right / width)
    ]


def test_captions_and_texts(tmp_path: Path) -> None:
    scenes = data.labelled_scenes(4)
    captions = read_dataset(data.coco_captions(tmp_path / "a", scenes), val_share=0)
    texts = read_dataset(data.texts(tmp_path / "b", scenes), DataOptions(prefix="caption en"), val_share=0)
    for dataset in (captions, texts):
        assert [(row.prefix, row.suffix, row.kind) for row in dataset.train] == [
            ("caption en", f"{len(scene.objects)} shapes", "text") for scene in scenes
        ]
    assert find(tmp_path / "b")[0].name == "pictures with .txt files"


def test_a_row_for_each_class(tmp_path: Path) -> None:
    scenes = data.labelled_scenes(8)
    path = data.coco(tmp_path, scenes, "box")
    rows = read_dataset(path, DataOptions(per_class=True), val_share=0).train
    for scene in scenes:
        own = [row for row in rows if Path(row.image).name == scene.name]
        present = [name for name in SHAPES if name in {one.label for one in scene.objects}]
        asked = [row.prefix.removeprefix("detect ") for row in own]
        assert asked[: len(present)] == present
        assert [row.suffix == "" for row in own] == [False] * len(present) + [True] * (len(present) < len(SHAPES))


def test_a_picture_without_objects_has_the_empty_answer(tmp_path: Path) -> None:
    path = data.coco(tmp_path, data.labelled_scenes(3), "box")
    content = json.loads(path.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 1]
    content["annotations"][0]["iscrowd"] = 1
    data.write_json(path, content)
    rows = read_dataset(path, val_share=0).train
    assert rows[1].suffix == "" and rows[1].kind == "detect"
    assert len(rows[0].objects) == len(data.labelled_scenes(3)[0].objects) - 1, "a crowd is no object"


def test_a_group_of_categories_is_no_class(tmp_path: Path) -> None:
    """Roboflow writes one that all others name; COCO's own "person" names itself."""
    path = data.coco(tmp_path, data.labelled_scenes(2), "box")
    content = json.loads(path.read_text())
    content["categories"].append({"id": 9, "name": "person", "supercategory": "person"})
    data.write_json(path, content)
    assert read_dataset(path, val_share=0).classes == (*SHAPES, "person")


def test_chosen_classes_in_their_order(tmp_path: Path) -> None:
    path = data.coco(tmp_path, data.labelled_scenes(6), "box")
    dataset = read_dataset(path, DataOptions(classes=("star", "circle")), val_share=0)
    assert {row.prefix for row in dataset.train} == {"detect star ; circle"}
    assert {one.label for row in dataset.train for one in row.objects} <= {"star", "circle"}


def test_marks_and_line_ends_of_windows(tmp_path: Path) -> None:
    data.save_pictures(tmp_path, data.labelled_scenes(2))
    rows = [json.dumps({"image": "000.png", "prefix": "ocr\r\n", "suffix": "é"}, ensure_ascii=False), "", "  "]
    rows.append(json.dumps({"image": ["001.png"], "prefix": "<image>ocr\n", "suffix": ""}))
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    dataset = read_dataset(tmp_path, val_share=0)
    assert [(row.prefix, row.suffix) for row in dataset.train] == [("ocr", "é"), ("ocr", "")]
    assert [row.where.rpartition(":")[2] for row in dataset.train] == ["1", "4"]


def test_pictures_may_lie_elsewhere(tmp_path: Path) -> None:
    data.save_pictures(tmp_path / "pictures", data.labelled_scenes(2))
    names = ["../pictures/000.png", str(tmp_path / "pictures" / "001.png")]
    rows = [{"image": name, "prefix": "ocr", "suffix": "x"} for name in names]
    dataset = read_dataset(data.write_lines(tmp_path / "rows" / "data.jsonl", rows), val_share=0)
    assert [Path(row.image).resolve() for row in dataset.train] == [
        tmp_path / "pictures" / name for name in ("000.png", "001.png")
    ]


def test_batches_read_what_was_read(tmp_path: Path, processor: Processor) -> None:
    dataset = read_dataset(data.roboflow_rows(tmp_path, data.labelled_scenes(4)).parent, val_share=0)
    ((batch, _),) = Batches(dataset.train, processor, BatchOptions(batch_size=4)).batches(0)
    assert batch.pixels.shape == (4, 112, 112, 3) and batch.features is None
    assert sorted(batch.image_index) == [0, 1, 2, 3]


def test_lower_case(tmp_path: Path) -> None:
    path = data.coco(tmp_path / "a", data.labelled_scenes(1), "box")
    content = json.loads(path.read_text())
    for category in content["categories"]:
        category["name"] = category["name"].upper()
    data.write_json(path, content)
    lower = read_dataset(path, DataOptions(lowercase=True), val_share=0).train[0]
    assert lower.prefix == data.prefix_of() and lower.suffix == data.answer_of(data.labelled_scenes(1)[0])
    assert read_dataset(path, val_share=0).train[0].suffix == lower.suffix.upper().replace("<LOC", "<loc")


def test_a_picture_that_exif_turns_is_labelled_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 20, 20, 20]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    path = data.write_json(tmp_path / "x.json", content)
    (row,) = read_dataset(path, val_share=0).train
    assert row.image_size == (20, 40) and row.suffix == "<loc0512><loc0000><loc1023><loc1023> cat"
    content["images"][0].update(width=40, height=20)
    data.write_json(path, content)
    with pytest.raises(InputError, match="are 40 x 20, but the picture is 20 x 40; EXIF turns it"):
        read_dataset(path)
