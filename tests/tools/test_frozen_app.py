"""PyInstaller makes an app of examples/frozen_app.py, which answers and starts its worker once."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import ROOT

SCENE = ROOT / "pg_mlx" / "demo" / "scene.png"
NOT_IN_AN_APP = (
    *("hypothesis", "mypy", "pydantic", "pytest", "PIL.ImageQt", "llvmlite", "pycocotools", "pillow_heif"),
    *("setuptools", "cryptography", "rich", "pygments", "jinja2", "starlette", "uvicorn"),
)
"""What a developer's environment has beyond a user's. Leaving it out saves time, nothing else."""

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/exe").exists(), reason="finds processes in /proc"),
    pytest.mark.ops("cpu", reason="the app's own process decides"),
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("PyInstaller", reason="needs the extra apps")
    folder = tmp_path_factory.mktemp("frozen")
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "ERROR", "--paths", str(ROOT)]
    command += [part for name in NOT_IN_AN_APP for part in ("--exclude-module", name)]
    command += ["--distpath", str(folder / "dist"), "--workpath", str(folder / "build"), "--specpath", str(folder)]
    done = subprocess.run([*command, str(ROOT / "examples/frozen_app.py")], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist" / "frozen_app" / "frozen_app"


def running(program: Path) -> Iterator[int]:
    """The processes of a program."""
    for link in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            if link.readlink() == program:
                yield int(link.parent.name)


def test_a_frozen_app_answers_and_starts_its_worker_once(app: Path):
    command = [str(app), "detect red circle", *[str(SCENE)] * 3]
    seen = set[int]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        answers = []
        for line in process.stdout:
            answers.append(line)
            seen |= {*running(app)}
        assert process.wait(60) == 0, process.stderr.read()
    assert len(answers) == 3 and len({*answers}) == 1
    assert answers[0].startswith("<loc") and answers[0].endswith(" red circle\n")
    assert process.pid in seen and len(seen) == 2  # the app and one worker
    assert [*running(app)] == []


def test_what_only_options_of_the_command_line_need_stays_out(app: Path):
    folders = {path.name for path in (app.parent / "_internal").iterdir()}
    assert {"mlx", "numpy", "pg_mlx", "sentencepiece"} <= folders
    assert not folders & {"mlx_lm", "transformers", "torch", "ray"}
