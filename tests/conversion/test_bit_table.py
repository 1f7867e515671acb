"""The table of bits: a recipe, as text, as JSON, and for the published shapes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.models import one_line_error

import pg_mlx
from pg_mlx.checkpoint.layouts import EMBEDDING, TEXT, VISION
from pg_mlx.conversion.bit_table import KINDS, BitTable, find_recipe, grouped, table_of
from pg_mlx.conversion.tried import Tried, draw_tried

TABLE = {"name": "mine", "about": "by hand", "bits": {"decoder q/k/v": "45-", "embedding/head": "6"}}


def test_a_digit_is_a_layer() -> None:
    recipe = BitTable.from_json(TABLE, "mine.json").recipe()
    bits = {
        name: (packing.bits if (packing := recipe.choose(f"{TEXT}.layers.{layer}.self_attn.{name}_proj", 64)) else None)
        for layer, name in ((0, "q"), (1, "v"), (2, "k"))
    }
    assert bits == {"q": 4, "v": 5, "k": None}
    embedding = recipe.choose(EMBEDDING, 64)
    assert embedding and embedding.bits == 6 and recipe.complete
    assert recipe.choose(f"{TEXT}.layers.0.self_attn.o_proj", 64) is None


def test_as_json_and_back() -> None:
    table = BitTable.from_json(TABLE, "mine.json")
    assert BitTable.from_json(json.loads(json.dumps(table.to_json())), "x") == table
    assert table.text() == "embedding/head  6\ndecoder q/k/v   45-"


def test_every_matrix_has_a_kind(tiny: Path) -> None:
    from pg_mlx.checkpoint.open import open_local

    specs = open_local(tiny).specs
    names = [name for spec in specs if spec.kind in ("linear", "embedding") for name in spec.sources]
    groups = grouped(names)
    assert sorted(name for own in groups.values() for name in own) == sorted(names)
    assert groups["decoder gate/up", 1] == [f"{TEXT}.layers.1.mlp.{part}_proj" for part in ("gate", "up")]
    assert groups["SigLIP q/k/v", 0] == [f"{VISION}.encoder.layers.0.self_attn.{part}_proj" for part in "qkv"]
    assert {kind for kind, _ in groups} == set(KINDS) - {"head of its own"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], 'it has no "bits"'),
        ({"bits": {"decoder": "44"}}, "no kind of matrix is called 'decoder'"),
        ({"bits": {"decoder o": "47"}}, "the bits of decoder o must be a text of -, 2, 3, 4, 5, 6, 8"),
        ({"bits": {"decoder o": [4]}}, "the bits of decoder o must be a text"),
        ({"bits": {"decoder o": "4"}, "group_size": 48}, "group_size must be one of 32, 64, 128"),
        ({"bits": {"decoder o": "4"}, "name": 3}, "name and about must be texts"),
    ],
)
def test_other_tables_are_one_line(content: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(content))
    with one_line_error("t.json", words):
        find_recipe(str(tmp_path / "t.json"))


def test_a_table_for_another_shape_is_refused(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with one_line_error("is for another shape: no module here is called"):
        pg_mlx.convert(tiny, out, q_recipe="paligemma2-3b-4bit", check=False)
    (tmp_path / "t.json").write_text(json.dumps({**TABLE, "bits": {"embedding/head": "6"}}))
    with one_line_error("mine is for another shape: it has no bits for"):
        pg_mlx.convert(tiny, out, q_recipe=str(tmp_path / "t.json"), check=False)
    with one_line_error("no recipe 'huge'; there are tiny, balanced, quality, paligemma-3b-4bit"):
        pg_mlx.convert(tiny, out, q_recipe="huge", check=False)


def test_a_recipe_file_packs(tiny: Path, tmp_path: Path) -> None:
    from pg_mlx.checkpoint.open import open_local
    from pg_mlx.conversion.plan import make_plan
    from pg_mlx.quantization import RECIPES

    table = table_of(make_plan(open_local(tiny), RECIPES["tiny"]).modules)
    (tmp_path / "t.json").write_text(json.dumps(table.to_json()))
    out = pg_mlx.convert(tiny, tmp_path / "out", q_recipe=str(tmp_path / "t.json"), check=False).target
    same = pg_mlx.convert(tiny, tmp_path / "same", q_recipe="tiny", check=False).target
    for name in ("model-00001-of-00001.safetensors", "config.json"):
        assert (out / name).read_bytes() == (same / name).read_bytes()


# --- what was tried -------------------------------------------------------------------------------------


def test_what_was_tried_is_drawn() -> None:
    tried = [
        Tried("4 bits", 3_000_000, 0.01, 0.001),
        *(Tried("predicted", 1_000_000 * size, 0.1 / size**3, None) for size in (2, 3, 4)),
    ]
    image = draw_tried(tried)
    pixels = np.asarray(image)
    assert all((pixels == color).all(axis=-1).any() for color in ((31, 119, 180), (214, 39, 40)))
    column = [image.getpixel((70 + 700 * 3 // 4, y)) for y in range(34, 294)]
    assert (214, 39, 40) in column, "3 of 4 MB to the right"
    assert draw_tried([]).size == image.size
