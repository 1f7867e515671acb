"""What is published: built in a clean folder, checked, and the wheel put alone into a fresh environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers.paths import ROOT

import pg_mlx

SCENE = ROOT / "pg_mlx" / "demo" / "scene.png"
VERSION = pg_mlx.__version__
NOT_SOURCE = shutil.ignore_patterns(
    ".*_cache", ".git", ".venv", ".hypothesis", "__pycache__", "build", "dist", "*.egg-info"
)
ALONE = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
SOURCE_SUFFIXES = {
    ".py", ".json", ".png", ".html", ".css", ".js", ".md", ".model", ".safetensors", ".weights", ".typed",
}  # fmt: skip


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the source archive, and with the wheel that was built from that archive."""
    source = tmp_path_factory.mktemp("clean") / "source"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    done = run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return source / "dist"


@pytest.fixture(scope="module")
def command(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pg-mlx` of a fresh environment that holds the wheel. The packages that it needs are found where they are."""
    environment = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    wheel = str(built / f"pg_mlx-{VERSION}-py3-none-any.whl")
    here = [sys.executable, "-m", "pip", "--python", str(python), "install"]
    if find_spec("pip") is None:
        here = ["uv", "pip", "install", "--python", str(python)]
    done = run(*here, "--no-deps", "--no-index", wheel, cwd=environment)
    assert done.returncode == 0, done.stderr
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "neighbours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "pg-mlx"


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, arguments)), cwd=cwd, env=ALONE, capture_output=True, text=True, timeout=300)


def test_metadata_is_sound(built: Path) -> None:
    names = sorted(path.name for path in built.iterdir())
    assert names == [f"pg_mlx-{VERSION}-py3-none-any.whl", f"pg_mlx-{VERSION}.tar.gz"]
    done = run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir(), cwd=built)
    assert done.returncode == 0 and done.stdout.count("PASSED") == 2, done.stdout + done.stderr


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert {name.split("/")[0] for name in names} == {"pg_mlx", f"pg_mlx-{VERSION}.dist-info"}
    package = {path for path in (ROOT / "pg_mlx").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {name for name in names if name.startswith("pg_mlx/")} == {str(path.relative_to(ROOT)) for path in package}
    assert {path.suffix for path in package} == SOURCE_SUFFIXES
    assert {"pg_mlx/py.typed", "pg_mlx/demo/scene.png", "pg_mlx/demo/checkpoint/tokenizer.model"} <= names
    assert {"pg_mlx/serving/http/page/page.html", f"pg_mlx-{VERSION}.dist-info/licenses/LICENSE"} <= names


def test_the_source_archive_holds_what_git_has(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        inside = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    made = {name for name in inside if name.startswith("pg_mlx.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone of the repository")
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    tracked = {name for name in listed if (ROOT / name).is_file()}
    assert inside - made == tracked - {".gitignore"}


def test_the_wheel_alone_prints_its_version_and_answers(command: Path, tmp_path: Path) -> None:
    where = run(command.with_name("python"), "-c", "import pg_mlx; print(pg_mlx.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(command.parents[1]), where.stderr
    assert run(command, "--version", cwd=tmp_path).stdout == f"pg-mlx {VERSION}\n"
    done = run(command, "generate", "--image", SCENE, "--prompt", "detect red circle", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [region["label"] for region in json.loads(done.stdout)["regions"]] == ["red circle"]


def test_the_wheel_alone_serves_its_page(command: Path, tmp_path: Path) -> None:
    arguments = [command, "serve", "--port", "0"]
    with subprocess.Popen(arguments, cwd=tmp_path, env=ALONE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            address = next(found[1] for line in process.stderr if (found := re.search(r"listening on (\S+)", line)))
            with urllib.request.urlopen(address, timeout=30) as response:
                page = response.read()
        finally:
            process.terminate()
    structure = (ROOT / "pg_mlx" / "serving" / "http" / "page" / "page.html").read_bytes()
    assert all(part in page for part in structure.split(b"<!-- joined -->"))


def test_a_source_tree_that_is_not_installed_knows_its_version(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pg_mlx", tmp_path / "pg_mlx", ignore=NOT_SOURCE)
    code = "import pg_mlx; print(pg_mlx.__version__, pg_mlx.__file__)"
    done = run(sys.executable, "-c", code, cwd=tmp_path)  # this folder is the first place of imports
    assert done.stdout.split() == [VERSION, str(tmp_path / "pg_mlx" / "__init__.py")], done.stderr
