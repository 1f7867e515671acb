"""An answer as a picture: what it keeps of the picture, how notebooks show it, and its regions for other packages."""

from __future__ import annotations

import gc
import html.parser
import io
import pickle
import sys
import types
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.models import one_line_error
from helpers.regions import region, scene
from helpers.service import SCENE, loaded
from PIL import Image

import pg_mlx
from pg_mlx.generation import AskedImage, Generation, Generations, Stats
from pg_mlx.processor import load_image
from pg_mlx.regions.draw import annotate

pytestmark = pytest.mark.ops("cpu", reason="it is about answers, however they were computed")

STATS = Stats(0, 0, 0, 0, 1, 0, 1, 0, 0)
SIZE = (640, 480)
HOSTILE = "</pre><img src=x onerror=alert(1)>\"'&\x00"


def answer(label: str = "cat", image: Any = None, **more: Any) -> Generation:
    regions = [region(label, (100, 200, 800, 900), SIZE, 0.5, mask=True), region("dog", (0, 0, 511, 511), SIZE)]
    asked = None if image is None else AskedImage(image)
    return Generation(f"text {label}", [1], "stop", STATS, regions, image_size=SIZE, image=asked, **more)


# --- the picture ----------------------------------------------------------------------------------------


def test_an_answer_draws_the_picture_that_was_asked_about(tmp_path: Path) -> None:
    image = scene(SIZE)
    generation = answer(image=image)
    expected = np.asarray(annotate(image, generation.regions))
    assert np.array_equal(np.asarray(generation.draw()), expected)
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), [str(tmp_path / "a.png"), "other.png"]):
        assert np.array_equal(np.asarray(answer(image=source).draw()), expected)
    assert np.array_equal(np.asarray(answer().draw(tmp_path / "a.png")), expected)
    assert answer().draw(image.resize((320, 240))).size == (320, 240)


def test_an_object_is_not_kept_alive_but_for_the_newest() -> None:
    for make in (lambda: scene(SIZE), lambda: np.asarray(scene(SIZE)).copy()):
        image = make()
        first, gone = answer(image=image), weakref.ref(image)
        del image
        gc.collect()
        assert gone() is not None and first.draw().size == SIZE  # the newest
        second = answer(image=scene(SIZE))
        gc.collect()
        assert gone() is None and second.draw().size == SIZE
        with one_line_error("no longer in memory"):
            first.draw()
        assert "no longer in memory" in first._repr_html_() and first._repr_png_() is None


def test_bytes_are_kept_only_while_they_are_the_newest() -> None:
    file = io.BytesIO()
    scene(SIZE).save(file, "PNG")
    generation = answer(image=file.getvalue())
    assert generation.draw().size == SIZE
    answer(image=scene(SIZE))
    with one_line_error("no longer in memory"):
        generation.draw()


def test_what_is_read_once_and_a_picture_that_changed_are_one_line(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb+") as file:
        scene(SIZE).save(file, "PNG")
        for source in (file, "-"):
            with one_line_error("no longer in memory"):
                answer(image=source).draw()
    with one_line_error("does not know its picture"):
        answer().draw()
    generation = answer(image=tmp_path / "a.png")
    scene((64, 48)).save(tmp_path / "a.png")
    with one_line_error("has changed"):
        generation.draw()
    (tmp_path / "a.png").unlink()
    with one_line_error("no such picture"):
        generation.draw()


def test_a_copy_in_another_process_knows_the_name_only() -> None:
    image = scene(SIZE)
    assert pickle.loads(pickle.dumps(answer(image="a.png"))).image.name == "a.png"
    with one_line_error("no longer in memory"):
        pickle.loads(pickle.dumps(answer(image=image))).draw()


def test_every_way_of_asking_knows_its_picture() -> None:
    model, processor = loaded()
    one = pg_mlx.generate(model, processor, "detect red circle", SCENE)
    *_, last = pg_mlx.stream_generate(model, processor, "ocr", [SCENE, SCENE], max_tokens=2)
    image = load_image(SCENE)
    many = pg_mlx.batch_generate(model, processor, "ocr", [SCENE, image], max_tokens=2)
    assert last.generation is not None
    for generation in (one, last.generation, *many):
        assert np.array_equal(np.asarray(generation.draw()), np.asarray(annotate(image, generation.regions)))
    assert isinstance(many, list) and many._repr_html_().count("<img ") == 2
    assert one.to_json().keys() == replace(one, image=None).to_json().keys()


# --- notebooks ------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_picture_regions_and_text_whatever_they_say() -> None:
    image = scene(SIZE)
    page = Page(answer(HOSTILE, image=image)._repr_html_())
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 1 and str(pictures[0]["src"]).startswith("data:image/jpeg;base64,")
    assert not {"onerror", "onload"} & set(pictures[0]) and {tag for tag, _ in page.tags} <= {
        *("div", "img", "ul", "li", "span", "code", "details", "summary", "pre")
    }
    assert "onerror=alert(1)>\"'&\ufffd 0.50" in page.text and "dog" in page.text and "\x00" not in page.text
    plain = replace(answer(image=image), regions=[], text=HOSTILE, finish_reason="length")
    page = Page(plain._repr_html_())
    assert HOSTILE.replace("\x00", "\ufffd") in page.text and "ended by: length" in page.text


def test_a_notebooks_png_is_small_and_has_the_regions() -> None:
    image = scene((4000, 3000))
    generation = replace(answer(image=image), image_size=image.size)
    data = generation._repr_png_()
    assert data is not None and len(data) < 300_000
    png = Image.open(io.BytesIO(data))
    assert png.format == "PNG" and png.size == (640, 480)
    plain = replace(generation, regions=[])._repr_png_()
    assert plain is not None and plain != data


def test_a_long_list_shows_the_first() -> None:
    image = scene(SIZE)
    page = Generations([answer(image=image)] * 30)._repr_html_()
    assert page.count("<img ") == 24 and "and 6 more" in page


# --- other packages -------------------------------------------------------------------------------------


def test_supervision_gets_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its documented constructor: Detections(xyxy, mask, confidence, class_id, tracker_id, data, metadata)."""
    module = types.ModuleType("supervision")

    def detections(xyxy, mask=None, confidence=None, class_id=None, tracker_id=None, data=None, metadata=None):
        return locals()

    module.Detections = detections  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "supervision", module)
    found = answer().to_supervision(["dog", "cat"])
    assert found["xyxy"].shape == (2, 4) and found["mask"].shape == (2, 480, 640)
    assert found["class_id"].tolist() == [1, 0] and found["data"]["class_name"].tolist() == ["cat", "dog"]


def test_without_supervision_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with one_line_error("pip install supervision"):
        answer().to_supervision()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools with numpy 2
def test_coco_annotations_are_those_of_pycocotools(capsys: pytest.CaptureFixture[str]) -> None:
    coco, masks = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.mask")
    numbers = {"dog": 7}
    generation = answer()
    first = generation.to_coco(image_id=3, categories=numbers)
    annotations = [*first, *answer("bird").to_coco(4, numbers, first_id=3)]
    assert numbers == {"dog": 7, "cat": 8, "bird": 9}
    assert [one["id"] for one in annotations] == [1, 2, 3, 4]
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": number, "width": SIZE[0], "height": SIZE[1]} for number in (3, 4)],
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }
    truth.createIndex()
    capsys.readouterr()
    [masked] = truth.loadAnns(truth.getAnnIds(imgIds=3, catIds=8))
    expected = generation.regions[0].mask
    assert expected is not None and np.array_equal(truth.annToMask(masked).astype(bool), expected)
    encoded = masks.encode(np.asfortranarray(expected.astype(np.uint8)))
    assert masked["segmentation"]["counts"].encode() == encoded["counts"]
    assert masked["area"] == masks.area(encoded) and masked["score"] == 0.5 and masked["iscrowd"] == 0
    [boxed] = truth.loadAnns(truth.getAnnIds(imgIds=3, catIds=7))
    x, y, width, height = boxed["bbox"]
    assert (x, y, x + width, y + height) == pytest.approx(generation.regions[1].box)
    assert boxed["area"] == pytest.approx(width * height) and "segmentation" not in boxed and "score" not in boxed
    assert replace(answer(), regions=[]).to_coco() == []
