"""generate.py on folders and several pictures: an answer each, in order, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.commands import CAT, ROOT, assert_one_line, run, tiny_checkpoint
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

CORRUPT = (3, 50, 51, 120, 199)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pictures, five of them corrupt, and what is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(200):
        path = folder / f"p{number:03}.{'jpg' if number % 2 else 'png'}"
        data = saved(scene((8 + number % 31, 8 + number % 17), number), "JPEG" if number % 2 else "PNG")
        if number in CORRUPT:
            data = b"" if number == 120 else data[: len(data) // 2]
        path.write_bytes(data)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "below").mkdir()
    return folder


# --- all the way, with a real (random) model ------------------------------------------------------------


def test_a_folder_with_corrupt_pictures_gives_the_others_and_names_them(model: Path, folder: Path):
    done = run(
        *("--model", str(model), "--image", str(folder), "--prompt", "detect cat"),
        *("--max-tokens", "3", "--format", "jsonl"),
    )
    assert done.returncode == 1
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    names = [Path(answer["image"]).name for answer in answers]
    assert len(answers) == 195 and names == sorted(names)
    assert all(len(answer["token_ids"]) <= 3 and answer["stats"]["prompt_tokens"] > 16 for answer in answers)
    *failures, cut, speed, total = [line for line in done.stderr.splitlines() if "no fast BLAS" not in line]
    assert len(failures) == 5 and total == "5 of 200 pictures failed"
    assert "were cut off after 3 tokens" in cut and "pictures a second" in speed
    for number, line in zip(CORRUPT, failures, strict=True):
        assert f"p{number:03}" in line


def test_each_answer_is_the_one_that_its_picture_gets_alone(model: Path, folder: Path):
    pictures = [folder / "p000.png", folder / "p001.jpg"]
    flags = ("--model", str(model), "--prompt", "ocr", "--max-tokens", "5")
    together = run(*flags, "--image", str(pictures[0]), "--image", str(pictures[1]), "--format", "json")
    alone = [json.loads(run(*flags, "--image", str(p), "--format", "json").stdout) for p in pictures]
    assert [answer["text"] for answer in json.loads(together.stdout)] == [answer["text"] for answer in alone]
    text = run(*flags, "--image", str(pictures[0]), "--image", str(pictures[1]))
    assert text.stdout == "".join(f"{p}: {a['text']}\n" for p, a in zip(pictures, alone, strict=True))


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_batches_change_nothing_but_the_time(model: Path, folder: Path, capsys: pytest.CaptureFixture, kind: str):
    """Two corrupt pictures and one that is missing among sound ones; answers of many lengths."""
    images = [folder / f"p{number:03}.{'jpg' if number % 2 else 'png'}" for number in (0, 1, 2, 3, 4, 50, 5, 6, 7)]
    flags = [flag for image in (*images, "missing.png") for flag in ("--image", str(image))]
    flags += [
        "--model",
        str(model),
        "--prompt",
        "",
        "--max-tokens",
        "30",
        "--temp",
        "3",
        "--seed",
        "5",
        "--format",
        kind,
    ]
    results = []
    for batch in (["--batch-size", "1"], ["--batch-size", "3"], []):
        code = main(["generate", *flags, *batch])
        out, err = capsys.readouterr()
        if kind == "jsonl":
            out = [
                {name: part for name, part in json.loads(line).items() if name != "stats"} for line in out.splitlines()
            ]
        lines = [line for line in err.splitlines() if "no fast BLAS" not in line]
        assert "pictures a second" in lines.pop(-2)
        results.append((code, out, lines))
    assert results[0] == results[1] == results[2]
    code, out, err = results[0]
    failures = [line for line in err if "cut off" not in line]
    assert code == 1 and len(failures) == 4 and (len(out) == 7 if kind == "jsonl" else out.count("\n") >= 7)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_leaves_valid_lines(model: Path, folder: Path, tmp_path: Path, how: signal.Signals):
    command = [sys.executable, str(ROOT / "generate.py"), "--model", str(model), "--image", str(folder), "--prompt", ""]
    with (tmp_path / "out.jsonl").open("wb") as out:
        process = subprocess.Popen(
            [*command, "--format", "jsonl", "--max-tokens", "8"], stdout=out, stderr=out.fileno()
        )
        while (tmp_path / "out.jsonl").stat().st_size < 20_000:
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(how)
        process.wait(30)
    lines = (tmp_path / "out.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""  # every line has its end
    answers = [json.loads(line) for line in lines if line.startswith(b"{")]
    assert 10 < len(answers) < 195


def test_interrupting_ends_the_answer_and_the_row(model: Path, folder: Path):
    command = [sys.executable, str(ROOT / "generate.py"), "--model", str(model), "--image", str(folder), "--prompt", ""]
    process = subprocess.Popen(
        [*command, "--max-tokens", "8000", "--temp", "5", "--seed", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.read(1)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and rest.endswith(b"\n") and b"Traceback" not in errors


@pytest.mark.parametrize("kind", ["json", "jsonl", "text", "coco"])
def test_a_closed_stdout_is_one_line_and_no_failure_of_a_picture(model: Path, folder: Path, kind: str):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, str(ROOT / "generate.py"), "--model", str(model), "--image", str(folder), "--prompt", ""]
    command += ["--image", str(CAT), "--format", kind, "--max-tokens", "1"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    errors = done.stderr.decode().splitlines()
    assert done.returncode == 1 and "stdout was closed" in errors[-1]
    assert not any("Broken" in line or "Traceback" in line for line in errors)


def test_a_prompt_that_is_wrong_for_all_is_said_once(model: Path, folder: Path):
    done = run("--model", str(model), "--image", str(folder), "--prompt", "-", input=b"caf\xe9")
    assert done.returncode in (1, 2) and done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_an_empty_folder_is_one_line(model: Path, tmp_path: Path):
    assert_one_line(run("--model", str(model), "--image", str(tmp_path)), 2, "no pictures")


# --- what becomes of regions, with answers that are planted -----------------------------------------------

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


def test_a_file_that_cannot_be_written_ends_the_run(planted, model: Path, folder: Path, tmp_path: Path, capsys):
    (tmp_path / "p000.png").mkdir()
    assert ask(model, "--image", folder, "--annotate", tmp_path, "--format", "jsonl") == 1
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1 and "p000.png" in shown.err
    assert [json.loads(line)["text"] for line in shown.out.splitlines()] == [ANSWER]  # it was answered before that
    assert list(tmp_path.iterdir()) == [tmp_path / "p000.png"]


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


# --- the rows themselves ----------------------------------------------------------------------------------


def test_names_are_taken_from_sources_and_are_unlike(tmp_path: Path):
    sources = ["-", "https://example.com/a/cat%20one.jpg?size=3#x", "x/..", "a b?.png", "é" * 200, "stdin.png"]
    names = [picture.name for picture in expand(sources)]
    assert names[0] == "stdin" and names[1] == "cat_20one" and names[5] == "stdin-2"
    assert all(len(name.encode()) <= 130 and "/" not in name and not name.startswith(".") for name in names)
    assert len({name.lower() for name in names}) == len(names)
