"""generate.py on folders and several pictures: an answer each, in order, whatever happens to one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import CAT, ROOT, assert_one_line, run
from helpers.pictures import CORRUPT

from pg_mlx.cli import main


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
