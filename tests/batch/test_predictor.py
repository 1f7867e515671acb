"""Predictor: a row out for each row in, whatever holds the columns."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

import pg_mlx
from pg_mlx.batch import Predictor
from pg_mlx.batch.predictor import OUTPUTS
from pg_mlx.errors import InputError


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(prompt="caption en", max_tokens=6)


@pytest.fixture(scope="module")
def expected(sound: list[Path]) -> list[str]:
    model, processor = pg_mlx.load()
    answers = pg_mlx.batch_generate(model, processor, "caption en", [str(path) for path in sound], max_tokens=6)
    return [answer.text for answer in answers]


def test_paths(predictor: Predictor, sound: list[Path], expected: list[str]) -> None:
    table = predictor({"path": [str(path) for path in sound], "id": np.arange(len(sound))})
    assert table["text"] == expected
    assert list(table["id"]) == list(range(len(sound)))
    assert table["path"] == [str(path) for path in sound]
    assert table["error"] == [None] * len(sound)
    assert list(table) == ["path", "id", *OUTPUTS]


def test_every_form_of_a_picture_gives_the_same(predictor: Predictor, sound: list[Path], expected: list[str]) -> None:
    data = [path.read_bytes() for path in sound]
    forms = {
        "bytes": np.array(data, dtype=object),
        "dicts": [{"bytes": one, "path": None} for one in data],
        "dicts of paths": [{"bytes": None, "path": str(path)} for path in sound],
        "images": [Image.open(path) for path in sound],
        "arrays": [np.asarray(Image.open(path).convert("RGB")) for path in sound],
    }
    for form, column in forms.items():
        table = predictor({"image": column, "path": list(map(str, sound))})
        assert table["text"] == expected, form
        assert "image" not in table and len(table["path"]) == len(sound)


def test_a_broken_picture_is_an_error_in_its_row(predictor: Predictor, pictures: Path, expected: list[str]) -> None:
    paths = sorted(map(str, pictures.glob("*.png")))
    table = predictor({"path": [*paths, str(pictures / "none.png"), None]})
    broken = [number for number, error in enumerate(table["error"]) if error is not None]
    assert broken == [3, 8, 11, 12]
    assert "none.png" in table["error"][11]
    assert [text for text in table["text"] if text is not None] == expected
    assert all(len(table[name]) == 13 for name in OUTPUTS)


def test_no_rows(predictor: Predictor) -> None:
    assert predictor({"path": []}) == {"path": [], **{name: [] for name in OUTPUTS}}


def test_a_prompt_for_each_row(sound: list[Path], expected: list[str]) -> None:
    predictor = Predictor(max_tokens=6)
    prompts = ["caption en", "detect red circle", None, 5]
    table = predictor({"path": [str(sound[0])] * 4, "prompt": prompts})
    assert table["text"][0] == expected[0]
    assert table["text"][1] != expected[0]
    assert table["text"][2:] == [None, None]
    assert "no prompt" in table["error"][2] and "no text" in table["error"][3]


def test_regions_are_json_text_as_generate_has_them() -> None:
    picture = Path(pg_mlx.__file__).parent / "demo" / "scene.png"
    model, processor = pg_mlx.load()
    alone = pg_mlx.generate(model, processor, "detect red circle ; blue square ; green triangle", str(picture))
    table = Predictor(prompt="detect red circle ; blue square ; green triangle")({"path": [str(picture)]})
    assert json.loads(table["regions"][0]) == alone.to_json()["regions"] != []
    assert json.loads(table["malformed"][0]) == []
    kept = Predictor(prompt="detect red circle ; blue square ; green triangle", max_regions=1, min_score=0.0)
    (only,) = json.loads(kept({"path": [str(picture)]})["regions"][0])
    assert 0 <= only["score"] <= 1


def test_what_comes_back(predictor: Predictor, sound: list[Path]) -> None:
    columns = {"picture": [str(sound[0])], "id": ["a"], "text": ["what somebody wrote"]}
    chosen = Predictor(prompt="caption en", image="picture", keep=["id"], max_tokens=2)(columns)
    assert list(chosen) == ["id", *OUTPUTS]
    with pytest.raises(InputError, match="text would be replaced"):
        Predictor(prompt="caption en", image="picture")(columns)
    with pytest.raises(InputError, match="no column none to keep"):
        Predictor(prompt="caption en", image="picture", keep=["none"])(columns)


def test_wrong_columns(predictor: Predictor) -> None:
    with pytest.raises(InputError, match="with pictures"):
        predictor({"name": ["a"]})
    with pytest.raises(InputError, match="different lengths"):
        predictor({"path": ["a"], "id": []})
    with pytest.raises(InputError, match="neither a prompt"):
        Predictor()({"path": ["a"]})
    with pytest.raises(InputError, match="min_score"):
        Predictor(prompt="caption en", min_score=2)
    with pytest.raises(InputError, match="detect"):
        Predictor(prompt="caption en", constrain=True)
    with pytest.raises(TypeError):
        Predictor(prompt="caption en", colour="red")  # type: ignore[call-arg]


def test_pandas_and_pyarrow(predictor: Predictor, sound: list[Path], expected: list[str]) -> None:
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"path": list(map(str, sound)), "id": range(len(sound))}).iloc[::-1]
    answered = pandas.DataFrame(predictor(frame))
    assert list(answered["text"]) == expected[::-1] and list(answered["id"]) == list(range(len(sound)))[::-1]
    table = pyarrow.table({"image": [path.read_bytes() for path in sound], "id": list(range(len(sound)))})
    (batch,) = table.to_batches()
    answered = pyarrow.table(predictor(batch))
    assert answered.column("text").to_pylist() == expected
    assert answered.column("id").to_pylist() == list(range(len(sound)))


def test_the_function_of_the_spark_example(sound: list[Path]) -> None:
    pandas = pytest.importorskip("pandas")
    example = runpy.run_path(str(ROOT / "examples" / "spark_batch.py"))
    frames = [
        pandas.DataFrame({"id": [number], "path": [str(path)]}) for number, path in enumerate([*sound[:2], "none"])
    ]
    found = pandas.concat(example["captions"](iter(frames)), ignore_index=True)
    assert list(found) == [column.split()[0] for column in example["SCHEMA"].split(", ")]
    assert list(found["id"]) == [0, 1, 2]
    assert [error is None for error in found["error"]] == [True, True, False]
