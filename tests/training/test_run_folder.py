"""A run goes on exactly where it stopped, refuses what is not its own, and dies without leaving half a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.commands import tiny_checkpoint
from helpers.paths import ROOT
from helpers.training_run import SMALL, color_data, command, fingerprint, resume, run_process, train

import pg_mlx
from pg_mlx.training import run as run_module
from pg_mlx.training.state import owned, read_log

KILLS = int(os.environ.get("PG_MLX_KILLS", "4"))
"""How many points a run is killed at. 20 are thorough."""

KILLED = """
import os, signal, pg_mlx
from pathlib import Path
import mlx.core as mx
left = [int(os.environ['KILL_AT'])]
def count(function):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
for owner, names in ((Path, ('rename', 'replace', 'unlink', 'mkdir', 'write_text', 'touch')),
                     (os, ('fsync', 'write')), (mx, ('save_safetensors',))):
    for name in names:
        setattr(owner, name, count(getattr(owner, name)))
import atexit
"""
"""Dies as by kill -9 at the KILL_AT-th change on disk. What this many operations do not reach ends by itself."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return color_data(tmp_path_factory.mktemp("data") / "colors")


@pytest.fixture(scope="module")
def whole(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing has interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(model, data, out) == 0
    return out


def test_a_run_leaves_what_the_page_says(whole: Path, model: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {
        *("adapter_model.safetensors", "adapter_config.json", "state.safetensors", "run.json", "log.jsonl"),
        *("README.md", "curve.png", "answers.png", "best"),
    }
    assert {path.name for path in (whole / "best").iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    steps = [line["step"] for line in read_log(whole) if line["event"] == "report"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in read_log(whole) if line["event"] == "evaluation"] == [2, 4, 6]
    card = (whole / "README.md").read_text()
    assert "library_name: peft" in card and "| step | loss | exact answers |" in card
    loaded, _ = pg_mlx.load(model, adapter_path=whole / "best")
    assert loaded.config.text.num_hidden_layers


def test_an_interrupted_run_goes_on_bit_by_bit(
    whole: Path, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "halves"
    step = run_module.TrainingRun._step

    def pressed(self: run_module.TrainingRun, number: int) -> object:
        if number == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, number)

    before = signal.getsignal(signal.SIGINT)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(run_module.TrainingRun, "_step", pressed)
            assert train(model, data, out) == 130
        assert [line["step"] for line in read_log(out) if line["event"] == "report"] == [1, 2, 3]
        assert resume(out) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    for name in ("adapter_model.safetensors", "best/adapter_model.safetensors"):
        assert fingerprint(out, name) == fingerprint(whole, name)
    states = [mx.load(str(one / "state.safetensors"), return_metadata=True) for one in (out, whole)]
    assert states[0][1] == states[1][1]
    assert states[0][0].keys() == states[1][0].keys()
    assert all(mx.array_equal(array, states[1][0][name]).item() for name, array in states[0][0].items())
    reports = [
        [(line["step"], line["loss"]) for line in read_log(one) if line["event"] == "report"] for one in (out, whole)
    ]
    assert reports[0] == reports[1]


def test_a_finished_run_has_nothing_left_to_do(whole: Path) -> None:
    before = fingerprint(whole)
    assert resume(whole) == 0
    assert fingerprint(whole) == before


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--learning-rate", "1e-4"), "begun otherwise (--learning-rate 0.0001, not 0.001)"),
        (("--iters", "7"), "begun otherwise (--iters 7, not 6)"),
        (("--force",), "--resume goes on with a run; it goes with neither --force"),
    ],
)
def test_other_settings_are_refused(
    whole: Path, arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(whole, *arguments) == 2
    assert words in capsys.readouterr().err


def test_what_nothing_depends_on_may_be_different(whole: Path) -> None:
    assert resume(whole, "--steps-per-report", "3", "--save-every", "50") == 0


def test_other_data_is_refused(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = color_data(tmp_path / "other", rows=8)
    assert resume(whole, "--data", str(other)) == 2
    assert "is not the data with which" in capsys.readouterr().err


def test_data_may_move(whole: Path, data: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in data.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert resume(whole, "--data", str(moved)) == 0


def test_a_run_is_not_replaced_unasked(
    whole: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fingerprint(whole)
    assert train(model, data, whole) == 2
    assert "--resume goes on with it, --force begins anew" in capsys.readouterr().err
    assert fingerprint(whole) == before


def test_force_replaces_a_run_and_nothing_else(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert train(model, data, out) == 0
    first = fingerprint(out)
    assert train(model, data, out, "--force", "--seed", "1") == 0
    assert fingerprint(out) != first
    assert json.loads((out / "run.json").read_text())["settings"]["seed"] == 1
    (out / "mine.txt").write_text("mine")
    assert train(model, data, out, "--force") == 2
    assert "holds mine.txt, which no run wrote" in capsys.readouterr().err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "adapter_config.json").write_text("{}")
    assert train(model, data, foreign, "--force") == 2
    assert "is no run folder" in capsys.readouterr().err


def test_killed_at_any_point_it_loads_or_is_absent(whole: Path, model: Path, data: Path, tmp_path: Path) -> None:
    """And goes on to the same bits."""
    arguments = ("--model", str(model), "--data", str(data), *SMALL)
    total = _operations(tmp_path / "counted", arguments)
    assert total > 40
    for number in range(KILLS):
        at = 1 + (total - 1) * number // max(1, KILLS - 1)
        out = tmp_path / f"out{number}"
        done = _killed(out, at, arguments)
        assert done.returncode == -signal.SIGKILL, done.stderr
        if out.exists():
            pg_mlx.load_model(model, adapter_path=out)
            assert resume(out) == 0, f"killed at change {at} of {total}"
        else:
            assert train(model, data, out) == 0
        for name in ("adapter_model.safetensors", "best/adapter_model.safetensors"):
            assert fingerprint(out, name) == fingerprint(whole, name), f"killed at change {at} of {total}"
        steps = [line["step"] for line in read_log(out) if line["event"] == "report"]
        assert steps == [1, 2, 3, 4, 5, 6]
        assert owned(out), "nothing is left that --force would not know"
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def _killed(out: Path, at: int, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return run_process(
        "--adapter-path", str(out), *arguments, code=f"import os; os.environ['KILL_AT']='{at}'; exec({KILLED!r})"
    )


def _operations(out: Path, arguments: tuple[str, ...]) -> int:
    """How many changes on disk a run makes."""
    ending = f"{KILLED}\natexit.register(lambda: print('left', left[0], file=sys.stderr))"
    ending += "\nimport pg_mlx.threads\npg_mlx.threads.leave = sys.exit"
    code = f"import os; os.environ['KILL_AT']='1000000'; exec({ending!r})"
    done = run_process("--adapter-path", str(out), *arguments, code=code)
    assert done.returncode == 0, done.stderr
    return 1_000_000 - int(done.stderr.rpartition("left ")[2])


def test_ctrl_c_saves_and_ends_with_130(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = command("--model", str(model), "--data", str(data), "--adapter-path", str(out), *SMALL, "--iters", "100000")
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 3:"):
                process.send_signal(signal.SIGINT)
                break
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted, saved" in rest
    pg_mlx.load_model(model, adapter_path=out)
    assert time.time() - (out / "state.safetensors").stat().st_mtime < 60
