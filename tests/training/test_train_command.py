"""`pg-mlx train` and `pg-mlx eval` as commands: what they accept, print and write."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import mlx.core as mx
import pytest
from helpers.commands import tiny_checkpoint
from helpers.paths import ROOT
from helpers.training_run import SMALL, color_data, run_process, train
from PIL import Image

import pg_mlx
from pg_mlx.cli import main
from pg_mlx.training.state import read_log


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_data(tmp_path_factory.mktemp("data") / "colors")


def test_it_learns_and_scores_test_data(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Until it knows the three colours, by the best step and not the last one."""
    out = tmp_path / "out"
    flags = ("--iters", "40", "--learning-rate", "1e-2", "--lora-dropout", "0", "--steps-per-eval", "10")
    assert train(model, data, out, *flags, "--batch-size", "9", "--test", "--format", "json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 40 and result["ended"] == "done"
    assert result["validation"]["exact"] == 1.0 and result["test"]["exact"] == 1.0
    assert main(["eval", "--model", f"{model}+{out / 'best'}", "--data", str(data), "--format", "json"]) == 0
    (alone,) = json.loads(capsys.readouterr().out)
    assert alone["split"] == "test" and alone["exact"] == 1.0
    assert abs(alone["loss"] - result["test"]["loss"]) < 1e-5, "with the adapter in place as from a fresh load"


def test_eval_compares_models_in_one_table(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(model, data, out) == 0
    capsys.readouterr()
    answers = tmp_path / "answers.jsonl"
    arguments = ["eval", "--model", str(model), "--model", str(out), "--data", str(data), "--split", "valid"]
    assert main([*arguments, "--answers", str(answers)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "loss", "exact", "answers"]
    assert [row.split()[0] for row in rows] == [str(model), str(out)]
    last = [line for line in read_log(out) if line["event"] == "evaluation"][-1]
    assert abs(float(rows[1].split()[1]) - last["loss"]) < 1e-4
    assert len(answers.read_text().splitlines()) == 6


def test_eval_spares_files_that_it_did_not_write(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = data / "valid.jsonl"
    before, answers = labels.read_bytes(), tmp_path / "answers.jsonl"
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    arguments = ["eval", "--model", str(model), "--data", str(data), "--split", "valid", "--metrics", "exact"]
    for name in (labels, deep, tmp_path, tmp_path / "missing/answers.jsonl"):
        assert main([*arguments, "--answers", str(name)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "--answers" in line
    assert labels.read_bytes() == before
    for _ in range(2):  # the second replaces the first one's
        assert main([*arguments, "--answers", str(answers)]) == 0
        assert len(answers.read_text().splitlines()) == 3


def test_eval_keeps_what_it_knows_if_a_later_model_fails(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.jsonl"
    arguments = ["--data", str(data), "--split", "valid", "--metrics", "exact", "--answers", str(answers)]
    assert main(["eval", "--model", str(model), "--model", str(tmp_path / "no model"), *arguments]) == 2
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["model", str(model)]
    assert "no model" in err.splitlines()[-1] and len(answers.read_text().splitlines()) == 3


def test_early_stopping(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a rate of next to nothing no evaluation is better than the first one."""
    out = tmp_path / "out"
    flags = ("--learning-rate", "1e-30", "--metrics", "exact", "--steps-per-eval", "1", "--patience", "2")
    assert train(model, data, out, *flags) == 0
    assert "step 3: stopped, as it got no better" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_of_options(model: Path, data: Path, tmp_path: Path, suffix: str) -> None:
    """In mlx-lm's words; what is given on the command line wins."""
    values = {"model": str(model), "data": str(data), "train": True, "iters": 5, "batch_size": 2, "val_batches": 0}
    values |= {
        "learning_rate": 1e-3,
        "lora_parameters": {"rank": 4, "scale": 10.0, "dropout": 0.0},
        "final_softcap": False,
    }
    config = tmp_path / f"config.{suffix}"
    config.write_text(json.dumps(values))  # JSON is YAML too
    out = tmp_path / "out"
    assert main(["train", "-c", str(config), "--iters", "1", "--adapter-path", str(out)]) == 0
    settings = json.loads((out / "run.json").read_text())["settings"]
    assert (settings["iters"], settings["batch_size"], settings["lora_rank"], settings["lora_alpha"]) == (1, 2, 4, 40.0)
    assert settings["final_softcap"] is False and not (out / "best").exists()


def test_a_wrong_file_of_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    for text, words in (("a: [", "is not valid YAML"), ("- 1", "holds no options"), ("itres: 3", "--itres=3")):
        config.write_text(text)
        assert main(["train", "-c", str(config), "--data", "D"]) == 2
        assert words in capsys.readouterr().err


def test_dry_run_reads_no_weights(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pg_mlx.training import prepare

    monkeypatch.setattr(prepare, "load_with", None)
    out = tmp_path / "out"
    assert train(model, data, out, "--dry-run") == 0
    shown = capsys.readouterr()
    assert "data: 9 rows to learn from, 3 to validate with, 3 to test" in shown.err
    assert "memory: about" in shown.err and shown.out == ""
    assert not out.exists()
    assert Image.open(tmp_path / "out.png").size[0] > 1000


def test_too_little_memory_is_said_before_weights_are_read(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(model, data, tmp_path / "out", "--memory-limit", "1MB") == 2
    error = capsys.readouterr().err
    assert "even with one row at a time, more than --memory-limit 1.0 MB" in error
    assert train(model, data, tmp_path / "out", "--dry-run", "--batch-size", "64") == 0
    whole = capsys.readouterr().err
    least = re.search(r"memory: about ([\d.]+) MB", whole)
    assert least and "activations are kept" in whole
    limit = f"{float(least[1]) * 0.7}MB"
    assert train(model, data, tmp_path / "out", "--dry-run", "--batch-size", "64", "--memory-limit", limit) == 0
    assert "layers are computed twice" in capsys.readouterr().err


def test_a_full_fine_tuning_is_a_checkpoint(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(model, data, out, "--fine-tune-type", "full", "--lora-dropout", "0", "--test") == 0
    before, _ = pg_mlx.load(model)
    after, _ = pg_mlx.load(out / "model")
    name = "language_model.layers.0.mlp.down_proj.weight"
    from mlx.utils import tree_flatten

    weights = [dict(tree_flatten(one.parameters())) for one in (before, after)]
    assert not mx.array_equal(weights[0][name], weights[1][name]).item()
    tower = [key for key in weights[0] if key.startswith("vision_tower")]
    assert all(mx.array_equal(weights[0][key], weights[1][key]).item() for key in tower), "it was frozen"
    assert main(["convert", "--validate", str(out / "model")]) == 0
    capsys.readouterr()
    assert main(["eval", "--model", str(out / "best"), "--data", str(data), "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["rows"] == 3
    assert main(["train", "--resume", "--adapter-path", str(out)]) == 0


def test_an_adapter_as_the_beginning(model: Path, data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train(model, data, first, "--lora-rank", "4") == 0
    flags = ("--resume-adapter-file", str(first), "--learning-rate", "1e-30", "--iters", "1")
    assert train(model, data, second, *flags) == 0
    assert json.loads((second / "adapter_config.json").read_text())["r"] == 4
    one, two = (mx.load(str(out / "adapter_model.safetensors")) for out in (first, second))
    assert all(mx.allclose(one[key], two[key], atol=1e-6).item() for key in one)


def test_dora_loads_again(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(model, data, out, "--fine-tune-type", "dora") == 0
    assert json.loads((out / "adapter_config.json").read_text())["use_dora"] is True
    pg_mlx.load_model(model, adapter_path=out)


def test_callbacks_of_mlx_lm(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are imported only when they are asked for, and get mlx-lm's names."""
    seen: list[tuple[str, dict[str, float]]] = []

    class Recorder:
        def on_train_loss_report(self, info: dict[str, float]) -> None:
            seen.append(("train", info))

        def on_val_loss_report(self, info: dict[str, float]) -> None:
            seen.append(("val", info))

    module = ModuleType("mlx_lm.tuner.callbacks")
    module.get_reporting_callbacks = lambda names, project, folder, config: Recorder()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlx_lm", ModuleType("mlx_lm"))
    monkeypatch.setitem(sys.modules, "mlx_lm.tuner", ModuleType("mlx_lm.tuner"))
    monkeypatch.setitem(sys.modules, "mlx_lm.tuner.callbacks", module)
    assert train(model, data, tmp_path / "out", "--report-to", "wandb", "--project-name", "p") == 0
    assert [name for name, _ in seen] == [*["train", "train", "val"] * 3]
    assert {"iteration", "train_loss", "learning_rate", "trained_tokens", "peak_memory"} <= seen[0][1].keys()
    assert {"iteration", "val_loss", "val_time", "val_exact"} <= seen[2][1].keys()


def test_mlx_lm_has_these_callbacks() -> None:
    """The real function takes what the command gives, and its callbacks have the methods that a run calls."""
    from mlx_lm.tuner.callbacks import TrainingCallback, get_reporting_callbacks

    inspect.signature(get_reporting_callbacks).bind("wandb", "project", "folder", {})
    assert hasattr(TrainingCallback, "on_train_loss_report") and hasattr(TrainingCallback, "on_val_loss_report")


WRONG = [
    ((), "no data was given"),
    (("--data", "D", "--iters", "3", "--epochs", "2"), "say the same in two ways"),
    (("--data", "D", "--learning-rate", "-1"), "learning rate is -1.0, but must be above 0"),
    (("--data", "D", "--metrics", "bleu"), "there is no metric 'bleu'"),
    (("--data", "D", "--fine-tune-type", "full", "--resume-adapter-file", "A"), "full has none"),
    (("--data", "/nowhere"), "there is no file or folder"),
    (("--resume",), "holds no run to go on with"),
    (("--lora", "3"), "unrecognized arguments"),
]


@pytest.mark.parametrize("arguments, words", WRONG)
def test_wrong_options_are_one_line(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "--adapter-path", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


def test_mlx_lms_words_are_accepted(model: Path, data: Path, tmp_path: Path) -> None:
    flags = ("--train", "--mask-prompt", "--num-layers", "-1", "--iters", "1", "--grad-checkpoint")
    assert train(model, data, tmp_path / "out", *flags) == 0


def test_accumulation_is_one_large_batch(model: Path, data: Path, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    plain = ("--lora-dropout", "0", "--val-batches", "0")
    assert train(model, data, one, "--batch-size", "6", *plain) == 0
    assert train(model, data, many, "--batch-size", "2", "--grad-accumulation-steps", "3", *plain) == 0
    first, second = (mx.load(str(out / "adapter_model.safetensors")) for out in (one, many))
    assert all(mx.abs(first[key] - second[key]).max().item() < 1e-5 for key in first)


def test_nothing_heavy_is_imported(model: Path, data: Path, tmp_path: Path) -> None:
    code = (
        "import atexit, sys, pg_mlx.threads; pg_mlx.threads.leave = sys.exit; "
        "atexit.register(lambda: print('heavy', sorted({'transformers', 'mlx_lm', 'torch', 'pandas', 'yaml'} & "
        "{name.split('.')[0] for name in sys.modules}), file=sys.stderr))"
    )
    arguments = ("--model", str(model), "--data", str(data), "--adapter-path", str(tmp_path / "out"), *SMALL)
    done = run_process(*arguments, "--iters", "1", code=code)
    assert done.returncode == 0 and done.stderr.endswith("heavy []\n"), done.stderr


def test_no_training_is_imported_by_the_package() -> None:
    code = "import pg_mlx, pg_mlx.cli.generate, sys; print([name for name in sys.modules if 'training' in name])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
