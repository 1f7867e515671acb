"""What stderr says of a run: answers that were cut off or are empty, progress, and the closing line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import run, tiny_checkpoint

from pg_mlx.cli import main
from pg_mlx.demo import CHECKPOINT
from pg_mlx.memory.size import format_size

DEMO = CHECKPOINT.parent
SCENE, CLUTTER = DEMO / "scene.png", DEMO / "clutter.png"


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, list[str]]:
    asked = ["--model", str(CHECKPOINT), "--dtype", "float32"]  # a CPU computes bfloat16 slowly
    assert main(["generate", *asked, *map(str, arguments)]) == code
    shown = capsys.readouterr()
    return shown.out, shown.err.splitlines()


@pytest.mark.parametrize("form", ["text", "json", "jsonl", "coco"])
def test_an_answer_that_is_cut_off_is_reported_in_every_format(capsys: pytest.CaptureFixture[str], form: str) -> None:
    out, err = said(capsys, "--image", SCENE, "--prompt", "caption en", "--max-tokens", 5, "--format", form)
    assert "the answer was cut off after 5 tokens; a larger --max-tokens lets it go on" in err
    assert not any("cut" in line for line in out.splitlines())


def test_a_drawing_of_a_cut_answer_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    drawn = tmp_path / "out.png"
    asked = ("--image", SCENE, "--prompt", "detect red circle", "--max-tokens", 3, "--annotate", drawn)
    _, err = said(capsys, *asked)
    assert drawn.exists() and any("cut off after 3 tokens" in line for line in err)


def test_a_complete_answer_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "--image", SCENE, "--prompt", "caption en")
    assert not any("cut" in line for line in err)


def test_of_several_the_cut_ones_are_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    whole = json.loads(said(capsys, "--image", SCENE, "--prompt", "ocr", "--format", "json")[0])
    most = len(whole["token_ids"]) + 1
    asked = ("--prompt", "ocr", "--prompt", "caption en", "--max-tokens", most)
    _, err = said(capsys, "--image", SCENE, "--image", CLUTTER, *asked)
    (line,) = [line for line in err if "cut off" in line]
    assert f"{SCENE} (caption en)" in line and f"{SCENE} (ocr)" not in line and f"after {most} tokens" in line


def test_many_names_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [flag for number in range(13) for flag in ("--prompt", f"caption e{number}")]
    _, err = said(capsys, "--image", SCENE, *prompts, "--max-tokens", 1)
    (line,) = [line for line in err if "cut off" in line]
    assert line.startswith("13 answers were cut off after 1 tokens") and line.endswith("and 3 more")


def test_several_answers_end_with_a_line_of_pictures_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "--image", SCENE, "--image", CLUTTER, "--prompt", "ocr")
    assert err[-1].startswith("2 answers in ") and "pictures a second" in err[-1]
    assert not any("pictures a second" in line for line in said(capsys, "--image", SCENE, "--prompt", "ocr")[1])


def test_the_demo_needs_megabytes(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "--image", SCENE, "--prompt", "ocr")
    number, unit = err[-1].partition("peak")[2].split()
    assert unit in ("MB", "GB") and float(number) >= 1


@pytest.mark.parametrize(
    "size, text", [(900, "1 kB"), (21_412_345, "21.4 MB"), (999_999_999, "1000.0 MB"), (3_052_000_000, "3.05 GB")]
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.ops("cpu", reason="what stderr says does not depend on the operations")
def test_an_empty_answer_gets_a_hint(tmp_path: Path) -> None:
    """A random model whose answer is only spaces or nothing: <eos> is made the likeliest token."""
    import mlx.core as mx

    folder = tiny_checkpoint(tmp_path / "silent")
    path = next(folder.glob("*.safetensors"))
    tensors = mx.load(str(path), return_metadata=True)
    weights, metadata = tensors
    name = next(name for name in weights if "embed_tokens" in name)
    table = weights[name]
    norm = next(
        name for name in weights if name.endswith("model.norm.weight") or name.endswith("language_model.norm.weight")
    )
    mx.eval(table)
    # All rows but that of <eos> are 0, so their logits are 0; the sign of the last norm decides that of <eos>.
    only = mx.where((mx.arange(table.shape[0]) == 1)[:, None], table, mx.zeros_like(table))
    for sign in (1.0, -3.0):
        mx.save_safetensors(str(path), {**weights, name: only, norm: mx.full(weights[norm].shape, sign)}, metadata)
        done = run("--model", str(folder), "--image", str(SCENE), "--prompt", "ocr", "--max-tokens", "3")
        if done.stdout == "\n":
            break
    assert done.returncode == 0, done.stderr
    assert "the answer is empty" in done.stderr and "detect THING" in done.stderr
