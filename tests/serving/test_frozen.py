"""A Client in an app that was frozen: it never starts the app itself as if it were Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT
from helpers.service import SCENE

from pg_mlx.client import Client, frozen
from pg_mlx.errors import InputError

pytestmark = pytest.mark.ops("cpu", reason="starting processes, whatever computes")

KINDS = {
    "PyInstaller": "sys.frozen, sys.executable = True, os.environ['APP']",
    "py2app": "sys.frozen, os.environ['EXECUTABLEPATH'] = 'macosx_app', os.environ['APP']",
    "Briefcase": "sys.executable = os.environ['APP']",
}
"""What makes an app different from Python: py2app's sys.executable is a Python, and Briefcase sets no sys.frozen."""

APP = """\
import os, sys
with open(os.environ["STARTS"], "a") as log:
    log.write("started\\n")
{kind}
{first}
from pg_mlx.client import Client, ServingError
from pg_mlx.errors import InputError
try:
    with Client() as client:
        print(client.generate("ocr", {scene!r}).text)
except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def run_app(tmp_path: Path, kind: str, first: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """An app that says of itself that it is frozen, and how often it was started."""
    code, app, starts = tmp_path / "app.py", tmp_path / "app", tmp_path / "starts"
    code.write_text(APP.format(kind=KINDS[kind], first=first, scene=str(SCENE)))
    app.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{code}" "$@"\n')
    app.chmod(0o755)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "APP": str(app), "STARTS": str(starts)}
    done = subprocess.run([app], capture_output=True, text=True, timeout=120, env=environment)
    return done, len(starts.read_text().splitlines())


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_app_turns_itself_into_a_worker(tmp_path: Path, kind: str):
    done, starts = run_app(tmp_path, kind, "from pg_mlx.client import serve_if_worker; serve_if_worker()")
    assert (done.returncode, done.stdout, starts) == (0, "35\n", 2), done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_app_that_does_not_gets_one_line(tmp_path: Path, kind: str):
    done, starts = run_app(tmp_path, kind, "")
    assert (done.returncode, starts) == (2, 1)
    assert len(done.stderr.splitlines()) == 1 and "serve_if_worker" in done.stderr


@pytest.mark.parametrize("executable", [None, "", "/nothere/python"])
def test_without_a_python_there_is_one_line(executable: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(InputError, match="command="):
        Client().start()


def test_other_programs_start_this_python(monkeypatch: pytest.MonkeyPatch):
    assert frozen.worker_command() == [sys.executable, "-m", "pg_mlx", "worker"]
    frozen.serve_if_worker()


def test_pyinstaller_finds_the_hook():
    from pg_mlx.pyinstaller import hook_dirs

    assert [path.name for path in Path(*hook_dirs()).glob("hook-*.py")] == ["hook-pg_mlx.py"]
    assert 'hook-dirs = "pg_mlx.pyinstaller:hook_dirs"' in (ROOT / "pyproject.toml").read_text()
