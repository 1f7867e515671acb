"""What was trained goes on to the other commands: the tutorial's way on the bundled demo, with a few pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import ROOT

from pg_mlx.cli import main
from pg_mlx.demo import CHECKPOINT
from pg_mlx.training.state import read_log

FLAGS = (
    "--iters",
    "8",
    "--steps-per-report",
    "1",
    "--batch-size",
    "8",
    "--learning-rate",
    "5e-3",
    "--val-batches",
    "1",
    "--steps-per-eval",
    "8",
)


@pytest.fixture(scope="module")
def largest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of the tutorial, as its example draws it."""
    folder = tmp_path_factory.mktemp("data") / "largest"
    script = ROOT / "examples" / "draw_shapes.py"
    subprocess.run([sys.executable, str(script), str(folder), "24"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def adapter(largest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "out"
    assert main(["train", "--data", str(largest), "--adapter-path", str(out), *FLAGS]) == 0
    return out


def answer(capsys: pytest.CaptureFixture[str], image: Path, *model: str) -> str:
    capsys.readouterr()
    assert main(["generate", *model, "--image", str(image), "--prompt", "largest en", "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)["text"]


def test_generate_convert_and_eval_agree(
    adapter: Path, largest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = largest / "valid-0000.png"
    before = answer(capsys, image, "--model", str(CHECKPOINT))
    tuned = answer(capsys, image, "--model", str(CHECKPOINT), "--adapter-path", str(adapter))
    assert tuned != before and tuned, "it has learnt to answer with words"
    assert answer(capsys, image, "--model", str(adapter)) == tuned, "the adapter names its base"
    merged = tmp_path / "merged"
    convert = ["convert", "--hf-path", str(CHECKPOINT), "--adapter-path", str(adapter), "--mlx-path", str(merged)]
    assert main([*convert, "-d", "--dtype", "float32", "--no-check"]) == 0
    assert answer(capsys, image, "--model", str(merged)) == tuned
    answers = tmp_path / "answers.jsonl"
    arguments = ["--data", str(largest), "--split", "valid", "--rows", "1", "--answers", str(answers)]
    assert main(["eval", "--model", str(adapter), *arguments]) == 0
    assert json.loads(answers.read_text())["answer"] == tuned


def test_the_loss_falls(adapter: Path) -> None:
    losses = [line["loss"] for line in read_log(adapter) if line["event"] == "report"]
    assert losses[-1] < 4 < 8 < losses[0]


def test_eval_scores_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The demo's own skill, with free answers and constrained ones."""
    image = CHECKPOINT.parent / "scene.png"
    capsys.readouterr()
    assert main(["generate", "--image", str(image), "--prompt", "detect red circle", "--format", "json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"image": str(image), "prefix": "detect red circle", "suffix": text}) + "\n")
    for flags in ([], ["--constrain"]):
        assert main(["eval", "--data", str(rows), "--split", "all", "--format", "json", *flags]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert found["exact"] == 1.0 and found["recall50"] == 1.0 and found["precision50"] == 1.0
        assert found["by_class"]["red circle"]["objects"] >= 1
