"""convert.py, called."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from helpers.checkpoints import convert_py
from pg_mlx.cli import main


def convert(source: Path | str, target: Path, *flags: str | Path, **kwargs) -> subprocess.CompletedProcess[str]:
    return convert_py("--hf-path", source, "--mlx-path", target, "--no-check", *flags, **kwargs)


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What convert.py calls, in this process: a third of a second sooner."""
    code = main(["convert", *map(str, arguments)], program="convert.py")
    out, errors = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, code, out, errors)


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line on stderr that names what is wrong."""
    lines = [line for line in done.stderr.splitlines() if "no fast BLAS" not in line]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1 and lines[0].startswith("convert.py: error: "), lines
    for word in words:
        assert word in lines[0], lines[0]
