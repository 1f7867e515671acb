"""Regions for other programs: run lengths, COCO results, supervision's arrays; and which regions are kept."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.models import one_line_error
from helpers.regions import blob, loc, region, seg
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx.regions import Region, rle
from pg_mlx.regions.export import arrays, to_coco, to_json
from pg_mlx.regions.reader import read_answer
from pg_mlx.regions.select import RegionFilter, iou, select

SIZE = (60, 40)

# --- run lengths --------------------------------------------------------------------------------------


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Noise, and coarse patterns with long runs, of any density."""
    numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    mask = numbers.random((height, width)) < draw(st.sampled_from([0.0, 0.02, 0.5, 0.97, 1.0]))
    return np.kron(mask, np.ones((draw(st.integers(1, 9)), draw(st.integers(1, 9))), bool))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools with numpy 2
@settings(max_examples=300, deadline=None)
@given(masks())
def test_run_lengths_are_those_of_pycocotools_and_come_back(mask: np.ndarray):
    theirs = pytest.importorskip("pycocotools.mask")
    encoded = rle.encode(mask)
    assert encoded["counts"].encode() == theirs.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert np.array_equal(rle.decode(encoded), mask)
    assert np.array_equal(theirs.decode(encoded).astype(bool), mask)


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=12))
def test_foreign_run_lengths_are_refused(counts: str):
    try:
        mask = rle.decode({"size": [3, 4], "counts": counts})
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert mask.shape == (3, 4)


# --- COCO ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_results_load_and_evaluate_in_pycocotools(tmp_path: Path):
    """The truth is made of the same boxes and masks, so both average precisions are 1."""
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    found = [
        region("cat", (100, 100, 800, 900), SIZE, 0.9, mask=True),
        region("dog", (0, 0, 1023, 1023), SIZE, 0.8, mask=True),
    ]
    results = [to_coco(one, 7, number, "seven.jpg") for number, one in enumerate(found, 1)]
    (tmp_path / "results.json").write_text(json.dumps(results))
    truth = [
        {**result, "id": number, "iscrowd": 0, "area": float(rle.decode(result["segmentation"]).sum())}
        for number, result in enumerate(results, 1)
    ]
    for entry in truth:
        del entry["score"]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    images = [{"id": 7, "width": 60, "height": 40, "file_name": "seven.jpg"}]
    (tmp_path / "truth.json").write_text(json.dumps(dict(images=images, annotations=truth, categories=categories)))
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO(str(tmp_path / "truth.json"))
        loaded = reference.loadRes(str(tmp_path / "results.json"))
        for kind in ("bbox", "segm"):
            evaluation = cocoeval.COCOeval(reference, loaded, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats[0] == pytest.approx(1.0), kind
        shown = loaded.annToMask(loaded.loadAnns([1])[0]).astype(bool)
    assert np.array_equal(shown, found[0].mask)


def test_a_box_without_score_counts_as_sure_in_coco_and_as_unknown_in_json():
    one = region("cat", (0, 0, 1023, 1023), SIZE)
    assert to_coco(one, 1, 1, "a.jpg")["score"] == 1.0 and "segmentation" not in to_coco(one, 1, 1, "a.jpg")
    assert to_coco(one, 1, 1, "a.jpg")["bbox"] == [0, 0, 60, 40]
    assert to_json(one)["score"] is None and to_json(one)["mask"] is None
    assert json.loads(json.dumps(to_json(one)))["box"] == [0, 0, 60, 40]


# --- supervision --------------------------------------------------------------------------------------


def test_arrays_are_as_supervision_wants_them():
    found = [
        region("cat", (0, 0, 1023, 1023), SIZE, 0.5, mask=True),
        region("dog", (0, 0, 511, 511), SIZE, 0.25),
        region("cat", (100, 100, 200, 200), SIZE, 0.75, mask=True),
    ]
    got = arrays(found)
    assert got["xyxy"].shape == (3, 4) and got["xyxy"].dtype == np.float32
    assert got["mask"].shape == (3, 40, 60) and got["mask"].dtype == bool
    assert [bool(mask.any()) for mask in got["mask"]] == [True, False, True]
    assert got["class_id"].tolist() == [0, 1, 0] and got["confidence"].tolist() == [0.5, 0.25, 0.75]
    assert got["data"]["class_name"].tolist() == ["cat", "dog", "cat"]
    assert arrays(found, ["dog"])["class_id"].tolist() == [-1, 0, -1]


def test_arrays_of_nothing_and_of_boxes_only():
    assert arrays([])["xyxy"].shape == (0, 4) and arrays([])["mask"] is None and arrays([])["confidence"] is None
    boxes = arrays([region("cat", (0, 0, 9, 9), SIZE), region("cat", (0, 0, 9, 9), SIZE, 0.5)])
    assert boxes["mask"] is None and boxes["confidence"] is None


def test_supervision_takes_the_arrays():
    supervision = pytest.importorskip("supervision")
    detections = supervision.Detections(**arrays([region("cat", (0, 0, 1023, 1023), SIZE, 0.5, mask=True)]))
    assert len(detections) == 1 and detections.area[0] == detections.mask[0].sum()


# --- which are kept -----------------------------------------------------------------------------------

BOX, NEAR, FAR = (100, 100, 500, 500), (110, 100, 500, 500), (600, 600, 900, 900)


def test_repeated_boxes_of_one_label_are_one_and_the_better_stays():
    found = [region("cat", BOX, SIZE, 0.4), region("cat", NEAR, SIZE, 0.6), region("dog", BOX, SIZE, 0.1)]
    assert select(found, dedup_iou=0.9) == found[1:]
    assert select(found, dedup_iou=0.99) == found
    unscored = [region("cat", BOX, SIZE), region("cat", NEAR, SIZE), region("cat", FAR, SIZE)]
    assert select(unscored, dedup_iou=0.9) == [unscored[0], unscored[2]]


def test_the_best_ones_stay_in_their_order():
    found = [region("a", BOX, SIZE, 0.2), region("b", NEAR, SIZE, 0.9), region("c", FAR, SIZE, 0.5)]
    assert select(found, max_regions=2) == found[1:] and select(found, max_regions=0) == []
    assert select(found, min_score=0.5) == found[1:] and select(found, min_score=0.0) == found
    assert select([region("a", BOX, SIZE), region("b", FAR, SIZE)], max_regions=1)[0].label == "a"


def test_overlap_is_intersection_over_union():
    assert iou((0, 0, 1, 1), (0, 0, 1, 1)) == 1 and iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)


@pytest.mark.parametrize("option", [dict(min_score=1.5), dict(dedup_iou=float("nan")), dict(max_regions=-1)])
def test_options_out_of_range_are_one_line(option: dict):
    with one_line_error(*option):
        select([], **option)


# --- scores -------------------------------------------------------------------------------------------


def test_the_score_is_the_mean_probability_of_the_records_own_tokens():
    pieces = [("I see ", -9.0)]
    pieces += [(token, -0.5) for token in ("<loc0001>", "<loc0002>", "<loc0003>", "<loc0004>")]
    pieces += [(" c", -1.0), ("", -3.0), ("ät", -2.0), (" ;", -9.0), (" ", -9.0)]
    pieces += [(token, -0.25) for token in ("<loc0001>", "<loc0002>", "<loc0003>", "<loc0004>")]
    text = "".join(piece for piece, _ in pieces)
    regions, _ = read_answer(text, SIZE, None, pieces)
    assert [one.label for one in regions] == ["cät", ""]
    assert regions[0].score == pytest.approx(np.exp(-(4 * 0.5 + 1 + 3 + 2) / 7))
    assert regions[1].score == pytest.approx(np.exp(-0.25))


def test_without_log_probabilities_there_is_no_score():
    text = loc(1, 2, 3, 4) + " cat"
    assert [one.score for one in read_answer(text, SIZE, None, [(text, None)])[0]] == [None]
    assert [one.score for one in read_answer(text, SIZE)[0]] == [None]


def test_masks_are_decoded_in_one_call_and_land_in_their_regions():
    calls: list[list] = []

    def decode(codes: list) -> np.ndarray:
        calls.append(codes)
        return np.stack([np.full((64, 64), row[0], np.float32) for row in codes])

    first, second = (3,) * 16, (5,) * 16
    text = f"{loc(1, 2, 3, 4)}{seg(first)} a ; {loc(1, 2, 3, 4)} b ; {loc(1, 2, 3, 4)}{seg(second)} c"
    regions, _ = read_answer(text, SIZE, decode)
    assert calls == [[first, second]]
    assert [None if one.decoded is None else one.decoded[0, 0] for one in regions] == [3, None, 5]
    assert read_answer(text, SIZE, lambda codes: None)[0][0].mask is None
    assert read_answer(loc(1, 2, 3, 4), SIZE, pytest.fail)[0]  # no codes, no call


def test_regions_compare_by_what_the_model_said():
    assert region("cat", BOX, SIZE) == Region("cat", BOX, SIZE, decoded=blob())


@pytest.mark.parametrize(
    ("kept", "constrain", "scores", "expected"),
    [
        (RegionFilter(max_regions=3), True, False, 3),
        (RegionFilter(max_regions=0), True, False, 0),
        (RegionFilter(), True, False, None),
        (RegionFilter(max_regions=3), False, False, None),
        (RegionFilter(max_regions=3), True, True, None),
        (RegionFilter(dedup_iou=0.5, max_regions=3), True, False, None),
    ],
)
def test_an_answer_may_end_where_only_the_order_decides(
    kept: RegionFilter, constrain: bool, scores: bool, expected: int | None
) -> None:
    assert kept.enough(constrain, scores) == expected
