"""Whatever is wrong with data is one line with its file and place, before anything of a model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import training_data as data
from helpers.pictures import NOISE, saved
from PIL import Image

from pg_mlx.demo import CHECKPOINT
from pg_mlx.errors import InputError, PgMlxError
from pg_mlx.processor import Processor
from pg_mlx.training.dataset import check_lengths, read_dataset
from pg_mlx.training.faults import SHOWN, DataError
from pg_mlx.training.formats import DataOptions

GOOD = {"image": "a.png", "prefix": "caption en", "suffix": "a cat"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (100, 50), "red").save(tmp_path / "a.png")
    return tmp_path


def refusal(path: Path, options: DataOptions | None = None) -> str:
    with pytest.raises(PgMlxError) as caught:
        read_dataset(path, options)
    assert caught.value.exit_code == 2
    return str(caught.value)


def row(**changed: Any) -> bytes:
    return json.dumps({key: value for key, value in {**GOOD, **changed}.items() if value is not ...}).encode()


def detect(suffix: str) -> bytes:
    return row(prefix="detect cat", suffix=suffix)


def user(*messages: dict[str, Any]) -> bytes:
    return json.dumps({"messages": list(messages), "images": ["a.png"]}).encode()


SAID = {"role": "user", "content": "caption en"}

ROWS: dict[str, tuple[bytes, str]] = {
    "missing picture": (row(image="b.png"), "no such picture"),
    "no picture": (row(image=...), 'no key image, only ["prefix", "suffix"]'),
    "two pictures": (row(image=["a.png", "a.png"]), "names 2 pictures"),
    "address": (row(image="https://example.org/a.png"), "download it"),
    "picture is a number": (row(image=3), "must be the name of a file"),
    "picture is a folder": (row(image="."), "folder"),
    "zero byte": (row(image="a\0.png"), "zero byte"),
    "no JSON": (b'{"image": "a.png", ', "not valid JSON"),
    "deep JSON": (b"[" * 100_000, "not valid JSON"),
    "no object": (b"[1, 2]", "must be a JSON object"),
    "no prefix": (row(prefix=...), "no key prefix"),
    "no suffix": (row(suffix=...), "no key suffix"),
    "prefix is a number": (row(prefix=3), "prefix is '3' (int), but must be text"),
    "suffix is null": (row(suffix=None), "suffix is 'None' (NoneType), but must be text"),
    "eos in prefix": (row(prefix="caption <eos>"), "prefix holds <eos>"),
    "image in suffix": (row(suffix="<image>"), "suffix holds <image>"),
    "surrogate": (row(suffix="\ud800"), "not valid Unicode"),
    "not UTF-8": (row(suffix="x").replace(b"x", b"\xff"), "not UTF-8"),
    "three locations": (detect("<loc0001><loc0002><loc0003> cat"), "3 <loc>, where a box has 4"),
    "empty box": (detect("<loc0100><loc0100><loc0100><loc0200> cat"), "the box is empty or inverted"),
    "location too large": (detect("<loc0100><loc0100><loc0200><loc1024> cat"), "beyond <loc1023>"),
    "half a mask": (row(prefix="segment cat", suffix="<loc0000><loc0000><loc0200><loc0200><seg001> cat"), "1 <seg>"),
    "three messages": (user(SAID, {"role": "assistant", "content": "a"}, SAID), "user, assistant, user"),
    "system message": (user({"role": "system", "content": "be good"}, SAID), "system, user"),
    "part of a message": (user({"role": "user", "content": [{"type": "video"}]}, {"role": "assistant"}), "video"),
    "messages is text": (json.dumps({"messages": "hello"}).encode(), "messages is not a list"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(folder: Path, name: str) -> None:
    line, words = ROWS[name]
    (folder / "data.jsonl").write_bytes(row() + b"\n" + line + b"\n" + row() + b"\n")
    message = refusal(folder / "data.jsonl")
    assert message.startswith(f"{folder / 'data.jsonl'}:2: ") and words in message, message
    assert len(message.splitlines()) == 1


def test_broken_pictures(folder: Path) -> None:
    (folder / "cut.png").write_bytes(saved(NOISE)[:5000])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").touch()
    names = ("cut.png", "text.png", "empty.png")
    path = data.write_lines(folder / "data.jsonl", [{**GOOD, "image": name} for name in names])
    lines = refusal(path).splitlines()
    assert [line.startswith(f"{path}:{number}: ") for number, line in enumerate(lines, 1)] == [True] * 3
    assert all(name in line for name, line in zip(names, lines, strict=True))


def test_many_faults_are_counted(folder: Path) -> None:
    path = data.write_lines(folder / "data.jsonl", [{"image": "a.png"}] * 100)
    with pytest.raises(DataError) as caught:
        read_dataset(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == SHOWN + 1 and lines[-1] == "and 80 more faults" and caught.value.count == 100
    assert lines[19].startswith(f"{path}:20: ")


def test_a_line_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pg_mlx.training.formats.lines.MAX_LINE_BYTES", 1000)
    (folder / "data.jsonl").write_bytes(row() + b"\n" + row(suffix="x" * 2000))
    assert "data.jsonl:2: the line is longer" in refusal(folder)


# --- COCO ----------------------------------------------------------------------------------------------


def coco(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 50}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 20, 20]}],
        "categories": [{"id": 7, "name": "cat"}],
    }
    change(content)
    return data.write_json(folder / "_annotations.coco.json", content)


def annotation(**changed: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["annotations"][0].update(changed)


def polygon(points: Any) -> Callable[[dict[str, Any]], Any]:
    return annotation(bbox=None, segmentation=points)


def runs(size: list[int], counts: Any) -> Callable[[dict[str, Any]], Any]:
    return annotation(segmentation={"size": size, "counts": counts})


COCO: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "box outside": (annotation(bbox=[90, 10, 20, 20]), "annotations[0]: the box 90, 10, 110, 30"),
    "box of no size": (annotation(bbox=[10, 10, 0, 20]), "has no size"),
    "negative size": (annotation(bbox=[10, 10, -5, 20]), "has no size"),
    "NaN": (annotation(bbox=[float("nan"), 1, 2, 3]), "NaN or infinity"),
    "huge": (annotation(bbox=[0, 0, 10**400, 3]), "NaN or infinity"),
    "three numbers": (annotation(bbox=[1, 2, 3]), "must be a list of 4 numbers"),
    "a flag as a number": (annotation(bbox=[True, 2, 3, 4]), "must be a list of 4 numbers"),
    "unknown category": (annotation(category_id=8), "category_id is '8', which is in no category"),
    "unknown picture": (annotation(image_id=8), "image_id is '8', which is in no image"),
    "list as id": (annotation(image_id=[1]), "image_id is '[1]'"),
    "no box": (annotation(bbox=None), "neither a box nor a mask"),
    "two points": (polygon([[1, 1, 5, 5]]), "three points at least"),
    "odd polygon": (polygon([[1, 1, 5, 5, 9, 9, 3]]), "three points at least"),
    "polygon of text": (polygon([["1", 1, 5, 5, 9, 9]]), "must be a list of numbers"),
    "polygon outside": (polygon([[1, 1, 500, 5, 9, 9]]), "leaves the picture of 100 x 50"),
    "polygon NaN": (polygon([[1, 1, float("inf"), 5, 9, 9]]), "NaN or infinity"),
    "runs of another size": (runs([100, 50], [5000]), "size [100, 50], but the picture is [50, 100]"),
    "too few runs": (runs([50, 100], [10, 10]), "hold 20 pixels, but the picture has 5000"),
    "negative runs": (runs([50, 100], [-1, 5001]), "must be text or whole numbers"),
    "broken text of runs": (runs([50, 100], "~~"), "not part of the format"),
    "empty mask": (runs([50, 100], [5000]), "the mask is empty"),
    "wrong size": (lambda c: c["images"][0].update(width=50, height=100), "are 50 x 100, but the picture is 100 x 50"),
    "two pictures of one id": (lambda c: c["images"].append(c["images"][0]), "two records of image have the id 1"),
    "two annotations of one id": (
        lambda c: c["annotations"].append(c["annotations"][0]),
        "annotations[1]: two records of annotation have the id 1",
    ),
    "two categories of one id": (lambda c: c["categories"].append(c["categories"][0]), "two records of category"),
    "semicolon": (lambda c: c["categories"][0].update(name="cat; dog"), "the label 'cat; dog' holds ;"),
    "no name": (lambda c: c["categories"][0].update(name=None), "the label is 'None'"),
    "missing picture": (lambda c: c["images"][0].update(file_name="b.png"), "images[0]: no such picture"),
    "annotations is text": (lambda c: c.update(annotations="x"), "annotations is str, but must be a list"),
    "annotation is a number": (lambda c: c.update(annotations=[3]), "annotations[0]: it is '3'"),
    "crowd": (annotation(iscrowd="yes"), "iscrowd is 'yes'"),
}


@pytest.mark.parametrize("name", COCO)
def test_coco(folder: Path, name: str) -> None:
    change, words = COCO[name]
    path = coco(folder, change)
    message = refusal(folder)
    assert str(path) in message.splitlines()[0] and words in message, message


def test_segment_needs_masks(folder: Path) -> None:
    coco(folder, lambda content: None)
    assert "annotations[0]: the annotation has no segmentation" in refusal(folder, DataOptions(task="segment"))


def test_a_little_outside_is_cut(folder: Path) -> None:
    coco(folder, annotation(bbox=[-1.5, 10, 102, 41]))
    assert read_dataset(folder).train[0].objects[0].box == (0, 10, 100, 50)


# --- VIA and folders -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "words"),
    [
        ({"shape_attributes": {"name": "point", "cx": 1, "cy": 1}}, "shape is 'point', which has no area"),
        ({"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 5}}, "must be a list of 4 numbers"),
        ({"shape_attributes": {"name": "polygon", "all_points_x": [1, 2, 3], "all_points_y": [1, 2]}}, "3 numbers"),
        ({"region_attributes": {}}, "no label; --label"),
        ({"region_attributes": {"a": "x", "b": "y"}}, "has a, b"),
        ({"region_attributes": {"label": {"cat": True, "dog": True}}}, "2 labels"),
    ],
)
def test_via(folder: Path, region: dict[str, Any], words: str) -> None:
    whole = {"shape_attributes": {"name": "rect", "x": 1, "y": 1, "width": 5, "height": 5}}
    whole |= {"region_attributes": {"label": "cat"}, **region}
    path = data.write_json(folder / "via.json", {"a.png1": {"filename": "a.png", "regions": [whole]}})
    message = refusal(path)
    assert f"{path}: a.png1: regions[0]: " in message and words in message


def test_circles_and_one_label_for_all(folder: Path) -> None:
    regions = {"0": {"shape_attributes": {"name": "circle", "cx": 30, "cy": 25, "r": 10}, "region_attributes": {}}}
    data.write_json(folder / "via.json", {"a.png1": {"filename": "a.png", "regions": regions}})
    (one,) = read_dataset(folder / "via.json", DataOptions(label="ball")).train[0].objects
    assert one.label == "ball" and one.box == pytest.approx((20, 15, 40, 35), abs=1)


def test_texts(folder: Path) -> None:
    (folder / "b.txt").write_text("a cat")
    assert "gives the prompt" in refusal(folder)
    lines = refusal(folder, DataOptions(prefix="caption en")).splitlines()
    assert "a.png: the picture has no a.txt" in lines[0] and "b.txt: there is no picture" in lines[1]
    (folder / "b.txt").rename(folder / "a.txt")
    (folder / "a.txt").write_text("0 0.5 0.5 0.1 0.1\n1 0.2 0.2 .1 .1\n")
    assert "as YOLO has them" in refusal(folder, DataOptions(prefix="caption en"))


# --- wholes --------------------------------------------------------------------------------------------


def test_nothing_to_read(folder: Path) -> None:
    assert "is in no format that is read" in refusal(folder)
    assert "there is no file or folder" in refusal(folder / "nowhere")
    (folder / "data.jsonl").touch()
    assert "holds no example to learn from" in refusal(folder)
    (folder / "more.jsonl").touch()
    assert "data.jsonl, more.jsonl: name the file" in refusal(folder)


def test_broken_json_names_its_line(folder: Path) -> None:
    (folder / "x.json").write_text('{"images": [],\n "annotations": [,]}')
    assert f"{folder / 'x.json'}:2: it is not valid JSON" in refusal(folder / "x.json")
    (folder / "x.json").write_bytes(b'{"images":\n\n "\xff"}')
    assert f"{folder / 'x.json'}:3: it is not UTF-8" in refusal(folder / "x.json")


def test_an_unknown_class_is_refused(folder: Path) -> None:
    coco(folder, lambda content: None)
    assert "no class 'dog', only cat" in refusal(folder, DataOptions(classes=("dog",)))
    with pytest.raises(InputError, match="'boxes'"):
        DataOptions(task="boxes")


def test_long_answers_say_how_many_tokens(folder: Path) -> None:
    path = data.write_lines(folder / "data.jsonl", [GOOD, {**GOOD, "suffix": "a cat " * 30}])
    processor = Processor.from_folder(CHECKPOINT, 112)
    rows = read_dataset(path, val_share=0).train
    lengths = check_lengths(rows, processor)
    assert lengths.prefix == (len(processor.prompt_ids("caption en")),) * 2
    total = lengths.prefix[1] + lengths.suffix[1]
    assert check_lengths(rows, processor, total) == lengths
    with pytest.raises(DataError) as caught:
        check_lengths(rows, processor, total - 1)
    assert str(caught.value).startswith(f"{path}:2: prompt and answer have {total} tokens")
