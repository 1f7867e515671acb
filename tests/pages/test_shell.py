"""The shell that runs the commands of pages fails where a person's would."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pages.blocks import Block
from helpers.pages.shell import Failed, Shell, commands, extras


def test_commands_of_a_block() -> None:
    text = 'python -m pip install ".[serve]" && pg-mlx doctor   # a comment\n'
    text += "pg-mlx batch photos \\\n    --to out > log; curl x"
    assert list(commands(text)) == [
        ["python", "-m", "pip", "install", ".[serve]"],
        ["pg-mlx", "doctor"],
        ["pg-mlx", "batch", "photos", "--to", "out", ">", "log"],
        ["curl", "x"],
    ]


@pytest.mark.parametrize(
    "text, words",
    [
        ("pg-mlx generate --no-such-option", "exit code 2"),
        ("python generate.py --model /nowhere --image x.png --prompt ocr", "exit code 2"),
        ('pip install "pg_mlx[nothing]"', "no extra"),
        ("make coffee", "does not know make"),
        ("cat x | pg-mlx generate", "no |"),
        ("python no_such_file.py", "no_such_file"),
    ],
)
def test_what_is_wrong_is_reported(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Failed, FileNotFoundError)) as failure:
        Shell().run(text)
    assert words in str(failure.value)


def test_output_goes_where_the_command_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Shell().run("pg-mlx --version > version.txt")
    assert (tmp_path / "version.txt").read_text().startswith("pg-mlx ")
    assert {"serve", "docs", "mlx-lm"} <= extras()


def test_a_shorter_form_that_fits_no_longer_is_reported() -> None:
    with pytest.raises(ValueError, match=r"page\.md:3: '--iters 100'"):
        _ = Block("page.md", 3, "shell", "pg-mlx train", shorter=(("--iters 100", "--iters 1"),)).to_run
