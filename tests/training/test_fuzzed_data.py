"""Whatever stands where labels should: data is read, or refused with lines that people can read."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from helpers import training_data as data

from pg_mlx.errors import PgMlxError
from pg_mlx.training.dataset import read_dataset
from pg_mlx.training.formats import DataOptions

CASES = 100
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, 10**400, float("nan"), float("-inf"), "", "x", "\0", "\ud800", "..", "000.png"),
    *([], [[]], {}, {"size": [1, 1], "counts": "0"}, [None], ["a", 1], [1, 2, 3, 4], "https://x/y", "<eos>", "a;b"),
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a JSON value: what it is in, and under which key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    return found + [deeper for key in keys for deeper in places(value[key])]


def spoiled(content: Any, rng: random.Random) -> Any:
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 1, 3))):
        container, key = rng.choice(places(content))
        if isinstance(container, dict) and rng.random() < 0.2:
            container.pop(key, None)
        elif isinstance(container, dict) or key < len(container):
            container[key] = copy.deepcopy(rng.choice(ODD))
    return content


@pytest.mark.parametrize("name", ["rows", "messages", "box", "polygon", "rle", "runs", "captions", "via"])
def test_it_is_read_or_refused(tmp_path: Path, name: str) -> None:
    scenes = data.labelled_scenes(2, 0.25)
    writers = {"rows": data.big_vision_rows, "messages": data.messages_rows, "via": data.via}
    writers["captions"] = data.coco_captions
    path = writers[name](tmp_path, scenes) if name in writers else data.coco(tmp_path, scenes, name)
    text = path.read_text()
    content = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    rng, outcomes = random.Random(name), set[bool]()
    images = tmp_path / "pictures" if name == "rows" else None
    for _ in range(CASES):
        changed = spoiled(content, rng)
        if path.suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, changed)))
        else:
            path.write_text(json.dumps(changed))
        try:
            read_dataset(path, DataOptions("caption en", rng.choice(("detect", "segment")), images))
            outcomes.add(True)
        except PgMlxError as error:
            outcomes.add(False)
            assert error.exit_code == 2 and all(len(line) < 600 for line in str(error).splitlines())
    assert outcomes == {True, False}
