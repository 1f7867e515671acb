"""Answers with regions that generate.py writes: JSON, COCO, drawings and masks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import CAT
from helpers.pictures import saved
from helpers.regions import ARCHIVE, loc, scene, seg
from PIL import Image

import pg_mlx
from pg_mlx.cli import main
from pg_mlx.cli.pictures import expand
from pg_mlx.cli.writers import categories, image_ids
from pg_mlx.generation import Generation, Stats, Step
from pg_mlx.regions import rle
from pg_mlx.regions.reader import read_answer

STATS = Stats(0, 0, 0, 0, 1, 0, 1, 0, 0)


CODES = (*range(0, 120, 8), 127)


ANSWER = (
    f"{loc(100, 200, 800, 900)}{seg(CODES)} cat ; {loc(100, 210, 800, 900)} cat ; {loc(0, 0, 511, 511)} dog ; <loc0001>"
)


@pytest.fixture
def planted(model: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every picture gets ANSWER, its records with scores of about 0.9, 0.5 and 0.2. Returns the options asked with."""
    asked: list[dict[str, Any]] = []

    def answers(loaded, processor, requests, *options, **more):
        for index, outcome in enumerate(requests):
            for step in answer(processor, outcome.result()):
                yield index, step

    def answer(processor, request):
        logprobs = request.logprobs
        asked.append(dict(logprobs=logprobs, guide=request.guide))
        pieces = ANSWER.partition(";")[0], *("".join(x) for x in zip(";;;", ANSWER.split(";")[1:], strict=False))
        logged = list(zip(pieces, np.log([0.9, 0.5, 0.2, 1.0]).tolist(), strict=True)) if logprobs else []
        for piece in pieces:
            yield Step(piece)
        size = request.pictures[0].size
        regions, malformed = read_answer(ANSWER, size, processor.mask_decoder, by_token(logged))
        yield Step(
            "",
            generation=Generation(ANSWER, [1], "stop", STATS, regions, malformed, image_size=size),
        )

    def by_token(logged):
        """Each record's log-probability on its first character, since a token counts where it begins."""
        for piece, logprob in logged:
            body = piece.lstrip("; ")
            if piece != body:
                yield piece[: len(piece) - len(body)], -50.0
            yield body, logprob

    monkeypatch.setattr("pg_mlx.generation.Scheduler", answers)
    return asked


def ask(model: Path, *flags: str | Path) -> int:
    prompt = () if "--prompt" in flags else ("--prompt", "ocr")
    return main(["generate", "--model", str(model), "--mask-decoder", str(ARCHIVE), *prompt, *map(str, flags)])


def test_json_holds_boxes_masks_and_what_was_malformed(planted, model: Path, capsys):
    assert ask(model, "--image", CAT, "--prompt", "segment cat", "--format", "json") == 0
    answer = json.loads(capsys.readouterr().out)
    width, height = Image.open(CAT).size
    assert (answer["width"], answer["height"], answer["image"]) == (width, height, str(CAT))
    cat, again, dog = answer["regions"]
    assert [one["label"] for one in answer["regions"]] == ["cat", "cat", "dog"]
    assert cat["box_normalized"] == pytest.approx([200 / 1023, 100 / 1023, 900 / 1023, 800 / 1023])
    assert dog["box"] == pytest.approx([0, 0, 511 / 1023 * width, 511 / 1023 * height])
    (expected,) = pg_mlx.parse_regions(ANSWER.partition(" ;")[0], (width, height))
    mask = rle.decode(cat["mask"])
    assert mask.shape == (height, width) and mask.any() and again["mask"] is None
    x0, y0, x1, y1 = expected.box_pixels
    mask[y0:y1, x0:x1] = False
    assert not mask.any()
    assert answer["malformed"] == [{"text": "<loc0001>", "reason": "1 <loc>, where a box has 4"}]
    assert [one["score"] for one in answer["regions"]] == [None] * 3 and not planted[0]["logprobs"]


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--min-score", "0.4"], [0.9, 0.5]),
        (["--min-score", "0", "--max-regions", "1"], [0.9]),
        (["--min-score", "0", "--dedup-iou", "0.9"], [0.9, 0.2]),
        (["--max-regions", "2"], [None, None]),
    ],
)
def test_fewer_regions_on_request(planted, model: Path, capsys, flags: list[str], kept: list):
    assert ask(model, "--image", CAT, "--format", "jsonl", *flags) == 0
    regions = json.loads(capsys.readouterr().out)["regions"]
    assert [one["score"] for one in regions] == [score if score is None else pytest.approx(score) for score in kept]


@pytest.mark.parametrize(
    ("flags", "ends_with"),
    [
        (["--constrain", "--max-regions", "1"], 1),
        (["--max-regions", "1"], None),
        (["--constrain", "--max-regions", "1", "--min-score", "0.3"], None),
        (["--constrain", "--max-regions", "1", "--dedup-iou", "0.3"], None),
        (["--constrain", "--max-regions", "1", "--format", "coco"], None),
        (["--constrain"], None),
    ],
)
def test_an_answer_ends_early_only_where_the_first_regions_are_the_ones_kept(
    planted, model: Path, capsys, flags: list[str], ends_with: int | None
):
    assert ask(model, "--image", CAT, "--prompt", "detect cat ; dog", *flags) == 0
    guide = planted[0]["guide"]
    assert (guide is not None) == ("--constrain" in flags)
    assert guide is None or guide.left == ends_with


def test_coco_results_have_ids_for_pictures_and_categories(planted, model: Path, capsys, tmp_path: Path):
    for name in ("000000000139.jpg", "000000000285.jpg"):
        (tmp_path / name).write_bytes(CAT.read_bytes())
    assert ask(model, "--image", tmp_path, "--prompt", "detect dog ; cat", "--format", "coco") == 0
    entries = json.loads(capsys.readouterr().out)
    assert [(e["image_id"], e["category_id"], e["label"]) for e in entries[:3]] == [
        *((139, 2, "cat"), (139, 2, "cat"), (139, 1, "dog"))
    ]
    assert len(entries) == 6 and {entry["image_id"] for entry in entries[3:]} == {285}
    assert [entry["score"] for entry in entries[:3]] == pytest.approx([0.9, 0.5, 0.2])
    assert ["segmentation" in entry for entry in entries[:3]] == [True, False, False]


def test_ids_are_positions_where_names_are_no_numbers():
    pictures = expand(["7.jpg", "cat.jpg", "a/7.png"])
    assert image_ids(pictures) == {"7.jpg": 1, "cat.jpg": 2, "a/7.png": 3}
    assert image_ids(expand(["7.jpg", "0012.jpg"])) == {"7.jpg": 7, "0012.jpg": 12}
    assert image_ids(expand(["7.jpg", "007.jpg"])) == {"7.jpg": 1, "007.jpg": 2}
    assert image_ids(expand(["7.jpg", "0012.jpg"], ["detect cat", "detect dog"])) == {"7.jpg": 7, "0012.jpg": 12}
    assert categories(["detect cat ; dog;cat"]) == {"cat": 1, "dog": 2} and categories(["caption en"]) == {}
    assert categories(["detect dog", "ocr", "segment cat", "detect dog ; car"]) == {"dog": 1, "cat": 2, "car": 3}


def test_drawings_and_masks_are_written_for_one_picture(planted, model: Path, tmp_path: Path, capsys):
    out, masks = tmp_path / "out.png", tmp_path / "masks"
    assert ask(model, "--image", CAT, "--annotate", out, "--masks", masks) == 0
    assert Image.open(out).size == Image.open(CAT).size
    assert [path.name for path in masks.iterdir()] == ["cat-1-cat.png"]
    mask = np.asarray(Image.open(masks / "cat-1-cat.png"))
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255} and mask.shape == Image.open(CAT).size[::-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "out.png"]

    assert ask(model, "--image", CAT, "--masks", masks, "--soft-masks") == 0
    soft = np.asarray(Image.open(masks / "cat-1-cat.png"))
    assert soft.dtype == np.uint16 and len(np.unique(soft)) > 300
    assert np.mean((soft > 32768) == (mask > 0)) > 0.999


def test_drawings_of_several_pictures_go_to_a_folder_under_names_of_their_own(planted, model: Path, tmp_path: Path):
    for name in ("a/cat.png", "b/cat.jpg", "b/Cat.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.open(CAT).resize((60, 40)).save(tmp_path / name)
    out = tmp_path / "new" / "out"
    assert ask(model, "--image", tmp_path / "a", "--image", tmp_path / "b", "--annotate", out, "--masks", out) == 0
    drawings, masks = ["Cat-2.png", "cat-3.jpg", "cat.png"], ["Cat-2-1-cat.png", "cat-1-cat.png", "cat-3-1-cat.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted(drawings + masks)
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert ask(model, "--image", tmp_path / "a", "--annotate", tmp_path / "a") == 2  # it would replace the picture
    assert before == {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}


def test_a_mask_never_replaces_a_picture_that_was_given(planted, model: Path, tmp_path: Path, capsys):
    for name in ("cat.png", "cat-1-cat.png"):
        (tmp_path / name).write_bytes(saved(scene((9, 9))))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert ask(model, "--image", tmp_path, "--masks", tmp_path) == 2
    assert "cat-1-cat.png would be replaced" in capsys.readouterr().err
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.iterdir()}.items()


@pytest.mark.ops("cpu", reason="what is written does not depend on the operations")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".avif"])
def test_an_older_drawing_is_replaced_and_nothing_else(
    planted, model: Path, tmp_path: Path, capsys, suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    Image.new("RGB", (9, 9)).save(out)
    others = (out.read_bytes(), b"no picture at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 99)
    for content in others:
        out.write_bytes(content)
        assert ask(model, "--image", CAT, "--annotate", out) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{out} would be replaced" in line
        assert out.read_bytes() == content
    out.write_bytes(b"")  # as mktemp leaves it
    for _ in range(2):
        assert ask(model, "--image", CAT, "--annotate", out) == 0
    assert Image.open(out).size == Image.open(CAT).size


def test_a_file_that_cannot_be_written_ends_the_run(
    planted, model: Path, folder: Path, tmp_path: Path, capsys, monkeypatch
):
    def full(image: Image.Image, path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"the beginning")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    assert ask(model, "--image", folder, "--annotate", tmp_path, "--format", "jsonl") == 1
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 and "p000.png" in shown.err
    assert [json.loads(line)["text"] for line in shown.out.splitlines()] == [ANSWER]  # it was answered before that
    assert list(tmp_path.iterdir()) == []


def test_masks_that_nobody_asked_the_model_for_are_explained(planted, model: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setitem(globals(), "ANSWER", f"{loc(1, 2, 3, 4)} cat ; a ; b ; c")
    assert ask(model, "--image", CAT, "--masks", tmp_path) == 0
    assert "no answer had one" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["text", "jsonl", "json", "coco"])
def test_names_that_are_no_text_do_no_harm(planted, model: Path, tmp_path: Path, capsys, kind: str):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(saved(scene((9, 9))))
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    flags = ("--annotate", tmp_path / "out", "--masks", tmp_path / "out", "--format", kind)
    assert ask(model, "--image", tmp_path, *flags) == 0
    assert "caf" in capsys.readouterr().out and len(list((tmp_path / "out").iterdir())) == 2


def test_names_are_taken_from_sources_and_are_unlike(tmp_path: Path):
    sources = ["-", "https://example.com/a/cat%20one.jpg?size=3#x", "x/..", "a b?.png", "é" * 200, "stdin.png"]
    names = [picture.name for picture in expand(sources)]
    assert names[0] == "stdin" and names[1] == "cat_20one" and names[5] == "stdin-2"
    assert all(len(name.encode()) <= 130 and "/" not in name and not name.startswith(".") for name in names)
    assert len({name.lower() for name in names}) == len(names)
