"""Scores are those of COCO's own program, and of rules that can be said in a sentence."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import training_data as data

from pg_mlx.demo import CHECKPOINT
from pg_mlx.regions import Region, parse_regions
from pg_mlx.regions.mask_vae import MaskDecoder, MaskEncoder
from pg_mlx.training.example import Example
from pg_mlx.training.regions import RegionWriter, answer_text, in_order
from pg_mlx.training.scores import Predicted, detections, is_exact, mask_ious, score
from pg_mlx.training.sheet import sheet

A, B = "<loc0100><loc0100><loc0400><loc0400>", "<loc0500><loc0500><loc0900><loc0900>"


def examples(count: int = 30, kind: str = "detect") -> list[Example]:
    rows = []
    for scene in data.labelled_scenes(count):
        objects = in_order(scene.objects, [], scene.size)
        suffix = answer_text(objects, scene.size, [None] * len(objects)) if kind == "detect" else ""
        rows.append(Example(scene.name, f"{kind} thing", suffix, objects, kind, scene.size))
    return rows


def noisy(row: Example, rng: np.random.Generator) -> Predicted:
    """The right boxes moved a little, some missing, some of another class, some too many; with scores."""
    regions: list[Region] = []
    for region in parse_regions(row.suffix, row.image_size):
        draw = rng.random()
        if draw < 0.1:
            continue
        y0, x0, y1, x1 = (int(np.clip(place + rng.normal(0, 25), 0, 1023)) for place in region.locations)
        label = "star" if draw > 0.9 else "moon" if draw > 0.85 else region.label
        box = (min(y0, y1), min(x0, x1), max(y0, y1) + 1, max(x0, x1) + 1)
        regions += [replace(region, label=label, locations=box, score=float(rng.random()))] * (1 + (draw > 0.8))
    return Predicted(row, "", regions)


def test_map_is_that_of_pycocotools_on_the_exported_files(tmp_path: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    predicted = [noisy(row, rng) for row in examples()]
    exported = detections(predicted)
    truth = data.write_json(tmp_path / "truth.json", exported.coco_truth())
    found = data.write_json(tmp_path / "found.json", exported.coco_results())
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(truth))
        evaluation = COCOeval(loaded, loaded.loadRes(str(found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        classes = {}
        for category in loaded.dataset["categories"]:
            one = COCOeval(loaded, loaded.loadRes(str(found)), "bbox")
            one.params.catIds = [category["id"]]
            one.evaluate()
            one.accumulate()
            one.summarize()
            classes[category["name"]] = one.stats[:2]
    scores = score(predicted, ["map"])
    assert 0.1 < scores.map < scores.map50 < 0.99
    assert abs(scores.map - evaluation.stats[0]) <= 1e-6 and abs(scores.map50 - evaluation.stats[1]) <= 1e-6
    for name, (ap, ap50) in classes.items():
        assert abs(scores.by_class[name].ap - ap) <= 1e-6 and abs(scores.by_class[name].ap50 - ap50) <= 1e-6
    assert scores.exact is None and scores.mask_iou is None


def test_recall_and_precision() -> None:
    """Two objects, of which one is met; three boxes, of which one meets one, and one has an unknown label."""
    size = (1023, 1023)
    objects = data.objects_of(parse_regions(f"{A} cat ; {B} dog", size))
    row = Example("a.png", "detect cat ; dog", f"{A} cat ; {B} dog", objects, "detect", size)
    scores = score([Predicted(row, f"{A} cat ; {A} dog ; {B} moon")])
    assert (scores.recall50, scores.precision50, scores.exact) == (0.5, 1 / 3, 0.0)
    assert (scores.by_class["cat"].recall50, scores.by_class["dog"].recall50) == (1, 0)
    assert (scores.by_class["dog"].boxes, scores.by_class["dog"].objects) == (1, 1)
    perfect = score([Predicted(row, row.suffix)])
    assert (perfect.map, perfect.recall50, perfect.precision50, perfect.exact) == (pytest.approx(1), 1, 1, 1)
    silent = score([Predicted(row, "")])
    assert (silent.map, silent.recall50, silent.precision50) == (0, 0, None)


def test_rows_of_one_picture_are_one_picture() -> None:
    size = (1023, 1023)
    rows = [
        Example("a.png", f"detect {name}", f"{place} {name}", data.objects_of(parse_regions(f"{place} {name}", size)))
        for name, place in (("cat", A), ("dog", B))
    ]
    rows = [replace(row, kind="detect", image_size=size) for row in rows]
    exported = detections([Predicted(row, row.suffix) for row in rows])
    assert len(exported.sizes) == 1 and len(exported.truth) == len(exported.found) == 2


def test_nothing_to_find() -> None:
    row = Example("a.png", "detect cat", "", (), "detect", (10, 10))
    assert score([Predicted(row, "")]).to_json() == {"rows": 1, "exact": 1.0, "exact_by_kind": {"detect": 1.0}}
    scores = score([Predicted(row, f"{A} cat")])
    assert (scores.exact, scores.map, scores.precision50) == (0, None, 0)
    assert score([]).to_json() == {"rows": 0}


@pytest.mark.parametrize(
    ("kind", "wanted", "text", "right"),
    [
        ("text", "Blue Circle", " blue  circle\n", True),
        ("text", "blue circle", "blue circles", False),
        ("text", "", " ", True),
        ("text", "a ; b", "b ; a", False),
        ("detect", f"{A} cat ; {B} dog", f"{B} dog ;{A}  Cat", True),
        ("detect", f"{A} cat ; {A} cat", f"{A} cat", False),
        ("detect", f"{A} cat", A.replace("0100", "0101") + " cat", False),
        ("detect", "", "", True),
    ],
)
def test_exact(kind: str, wanted: str, text: str, right: bool) -> None:
    assert is_exact(Example("a.png", "", wanted, kind=kind), text) is right


def test_masks() -> None:
    """The right codes, decoded into their box, nearly are the true masks; codes as truth are met wholly."""
    path = CHECKPOINT / "mask_decoder.weights"
    decoder, writer = MaskDecoder.load(path), RegionWriter(MaskEncoder.load(path))
    rows = writer.written(examples(6, "segment"))
    scores = score([Predicted(row, row.suffix) for row in rows], mask_decoder=decoder)
    assert 0.85 < scores.mask_iou <= 1 and scores.exact == 1 and scores.map > 0.9
    coded = [replace(row, objects=tuple(replace(one, mask=None) for one in row.objects)) for row in rows]
    assert score([Predicted(row, row.suffix) for row in coded], mask_decoder=decoder).mask_iou == 1
    row = max(rows, key=lambda row: len(row.objects))
    first, *others = row.suffix.split(" ; ")
    whole = mask_ious(Predicted(row, row.suffix), decoder)
    assert mask_ious(Predicted(row, " ; ".join([*others, first])), decoder) == whole, "their order does not matter"
    assert mask_ious(Predicted(row, " ; ".join(others)), decoder) == [0, *whole[1:]]
    assert mask_ious(Predicted(row, ""), decoder) == [0] * len(whole)


def test_the_table_and_json() -> None:
    rng = np.random.default_rng(1)
    scores = score([noisy(row, rng) for row in examples(10)])
    lines = scores.lines()
    assert [line.split()[0] for line in lines[:3]] == ["exact", "mAP", "mAP"]
    header = next(number for number, line in enumerate(lines) if line.startswith("class "))
    assert [line.split()[0] for line in lines[header + 1 :]] == list(scores.by_class)
    assert len({len(line) for line in lines[header:]}) == 1
    assert json.loads(json.dumps(scores.to_json()))["map"] == round(scores.map, 6)


@pytest.mark.parametrize("kind", ["detect", "segment"])
def test_sheet(kind: str, tmp_path: Path) -> None:
    scenes = data.labelled_scenes(5)
    data.save_pictures(tmp_path, scenes)
    rows = [replace(row, image=str(tmp_path / row.image)) for row in examples(5, kind)]
    rows.append(Example(rows[0].image, "caption en", "words " * 80, image_size=rows[0].image_size))
    writer = RegionWriter(MaskEncoder.load(CHECKPOINT / "mask_decoder.weights"))
    drawn = sheet(rows, 12, writer)
    assert drawn.mode == "RGB" and drawn.width > 700 and drawn.height > 900
    fewer = sheet([replace(row, objects=(), kind="text", suffix="") for row in rows], 12)
    assert fewer.size == drawn.size and (np.asarray(fewer) != np.asarray(drawn)).any()
    assert sheet(rows, 1).width < drawn.width
