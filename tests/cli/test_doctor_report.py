"""`pg-mlx doctor --report`: two files or none, and the exit code says whether everything was right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pg_mlx.cli import main
from pg_mlx.demo import CHECKPOINT
from pg_mlx.measure.report import run
from pg_mlx.measure.report.context import Context, Found, Part

Work = Callable[[Context], Found]


def right(_: Context) -> Found:
    return Found("Yes.", {"ratio": 0.5})


def wrong(_: Context) -> Found:
    return Found("WRONG.", {}, healthy=False)


def broken(_: Context) -> Found:
    raise RuntimeError("no such kernel")


def interrupted(_: Context) -> Found:
    raise KeyboardInterrupt


def loads_a_model(context: Context) -> Found:
    assert context.given is not None
    model, _ = context.given()
    return Found(f"{model.config.text.num_hidden_layers} layers in {model.dtype}", {})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the parts of a report."""

    def parts(*works: Work) -> None:
        plan = [Part(work.__name__, "Is it so?", "If so, do it.", 5, work) for work in works]
        monkeypatch.setattr(run, "PLAN", plan)

    return parts


def test_it_writes_json_and_a_page(
    asked: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(right, right)
    assert main(["doctor", "--report", str(tmp_path / "mac.json"), "--quick"]) == 0
    out, errors = capsys.readouterr()
    assert out.startswith("healthy: ") and out.count("\n") == 1
    assert "pg-mlx doctor: 2 of 2, about 1 s left: Is it so?" in errors
    report, page = json.loads((tmp_path / "mac.json").read_text()), (tmp_path / "mac.md").read_text()
    assert report["quick"] and [part["figures"] for part in report["parts"]] == [{"ratio": 0.5}] * 2
    assert {"mlx", "pg_mlx", "system", "chip", "memory_bytes"} <= set(report["machine"])
    assert "*What it decides:* If so, do it." in page and str(tmp_path) not in page + json.dumps(report)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_wrong_shows_in_the_exit_code_and_what_fails_does_not(
    asked: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(right, broken)
    assert main(["doctor", "--report", str(tmp_path / "a.json")]) == 0
    assert "pg-mlx doctor: 1 of 2 parts failed: broken" in capsys.readouterr().err
    asked(wrong, right)
    assert main(["doctor", "--report", str(tmp_path / "b.json")]) == 1
    assert capsys.readouterr().out.startswith("NOT healthy: ")
    assert len(list(tmp_path.iterdir())) == 4


def test_an_interrupt_leaves_no_file(
    asked: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked(right, interrupted)
    assert main(["doctor", "--report", str(tmp_path / "mac.json")]) == 130
    assert list(tmp_path.iterdir()) == [] and capsys.readouterr().err.endswith("interrupted\n")


def test_a_model_of_ones_own_is_not_named(asked: Callable[..., None], tmp_path: Path) -> None:
    asked(loads_a_model)
    command = ["doctor", "--report", str(tmp_path / "x.json"), "--model", str(CHECKPOINT), "--dtype", "float32"]
    assert main(command) == 0
    text = (tmp_path / "x.json").read_text()
    assert "6 layers in mlx.core.float32" in text and str(CHECKPOINT) not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--report", "mac.txt"], "ends in .json"),
        (["--report", "nowhere/mac.json"], "no such folder: nowhere"),
        (["--report", "there.json"], "there.json exists already"),
        (["--report", "page.json"], "page.md exists already"),
        (["--report", "a.json", "--json"], "leave out --json"),
        (["--quick"], "--quick goes with --report"),
        (["--report", "a.json", "--model", "/nowhere"], "no such folder: /nowhere"),
    ],
)
def test_wrong_inputs_are_one_line_at_once(
    asked: Callable[..., None],
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked(broken)
    monkeypatch.chdir(tmp_path)
    for name in ("there.json", "page.md"):
        Path(name).write_text("mine")
    assert main(["doctor", *arguments]) == 2
    out, errors = capsys.readouterr()
    assert out == "" and said in errors and errors.count("\n") == 1
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"there.json": "mine", "page.md": "mine"}


def test_help_explains_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "--report mac.json" in out and "--quick takes a minute" in out
    assert "130 for Ctrl-C" in out
