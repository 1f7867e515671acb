"""generate.py with several prompts: each picture is read once, and each prompt answered as if it stood alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pg_mlx.cli import main
from pg_mlx.demo import CHECKPOINT
from pg_mlx.paligemma import PaliGemma
from pg_mlx.processor import images

SCENE, CLUTTER = CHECKPOINT.parent / "scene.png", CHECKPOINT.parent / "clutter.png"
PROMPTS = ("detect red circle", "caption en", "segment red circle", "ocr")


def flags(prompts: tuple[str, ...] = PROMPTS, pictures: tuple[Path, ...] = (SCENE,), *more: object) -> list[str]:
    asked = [flag for prompt in prompts for flag in ("--prompt", prompt)]
    shown = [flag for picture in pictures for flag in ("--image", str(picture))]
    return ["generate", "--model", str(CHECKPOINT), "--dtype", "float32", *asked, *shown, *map(str, more)]


def answers(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> Any:
    assert main([*arguments, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for answer in found if isinstance(found, list) else [found]:
        del answer["stats"]
    return found


def test_every_prompt_is_answered_about_every_picture_as_if_alone(capsys: pytest.CaptureFixture[str]) -> None:
    alone = [answers(capsys, flags((prompt,), (picture,))) for picture in (SCENE, CLUTTER) for prompt in PROMPTS]
    assert answers(capsys, flags(PROMPTS, (SCENE, CLUTTER))) == alone
    assert [(answer["image"], answer["prompt"]) for answer in alone] == [
        (str(picture), prompt) for picture in (SCENE, CLUTTER) for prompt in PROMPTS
    ]
    assert len({answer["text"] for answer in alone}) > len(PROMPTS)


def test_a_picture_is_read_and_encoded_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, encoded = list[str](), list[int]()
    load_image, encode_image = images.load_image, PaliGemma.encode_image
    monkeypatch.setattr(images, "load_image", lambda source: read.append(str(source)) or load_image(source))

    def encode(self: PaliGemma, pixels: Any) -> Any:
        encoded.append(len(pixels))
        return encode_image(self, pixels)

    monkeypatch.setattr(PaliGemma, "encode_image", encode)
    assert main([*flags(PROMPTS, (SCENE, CLUTTER)), "--batch-size", "3"]) == 0
    assert sorted(read) == sorted([str(SCENE), str(CLUTTER)]) and sum(encoded) == 2
    capsys.readouterr()


def test_lines_say_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(PROMPTS[:2])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == list(PROMPTS[:2])
    assert main(flags(PROMPTS[:2], (SCENE, CLUTTER))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [[str(p), q] for p in (SCENE, CLUTTER) for q in PROMPTS[:2]]


def test_each_answer_has_its_drawing_and_masks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(flags(PROMPTS, (SCENE,), "--annotate", tmp_path / "drawn", "--masks", tmp_path / "masks")) == 0
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {f"scene{n}.png" for n in ("", "-2", "-3", "-4")}
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["scene-3-1-red_circle.png"]
    capsys.readouterr()


def test_coco_files_count_pictures_and_labels_once(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ("detect circle", "detect circle ; star")
    assert main([*flags(prompts), "--format", "coco"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert len(entries) >= 3 and {entry["image_id"] for entry in entries} == {1}
    assert {(entry["label"], entry["category_id"]) for entry in entries} == {("circle", 1), ("star", 2)}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (flags(("-", "-")), "more than once"),
        ([*flags(("-",), ()), "--image", "-"], "both be read from stdin"),
        ([*flags(("detect cat", "caption en")), "--constrain"], "caption en"),
        ([*flags(), "--annotate", "out.png"], "several answers"),
    ],
)
def test_what_cannot_be_meant_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out and said in err and err.count("\n") == 1


def test_a_picture_that_cannot_be_read_fails_for_all_its_prompts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert main(flags(PROMPTS[:2], (tmp_path / "broken.png", SCENE))) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and err.count("broken.png is not") == 2 and "2 of 4 answers failed" in err
