"""Where the shipped kernels come from: the macOS wheel of the MLX version that is installed here."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

from .library import Library

VARIABLE = "PG_MLX_METALLIB"
"""The environment variable that names a metallib, or a wheel of mlx-metal."""
PLATFORM = "macosx_14_0_arm64"
MEMBER = "mlx/lib/mlx.metallib"
PATIENCE_S = 120
"""Seconds that downloading 45 MB may take."""


class NoMetallib(Exception):
    """The kernels cannot be had; the message says why."""


def cache_folder() -> Path:
    """The folder of this user's cache where wheels and what was taken out of them are kept."""
    base = Path.home() / "Library/Caches" if sys.platform == "darwin" else Path.home() / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or base, "pg_mlx", "metal")


@cache
def library() -> Library:
    """The kernels of the installed MLX version. Raises NoMetallib or BadLibrary."""
    return Library(metallib())


def metallib() -> Path:
    """The path of mlx.metallib: what the environment variable names, else MLX's own on a Mac, else the cache's, which
    is downloaded where it is missing. Raises NoMetallib."""
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named)
        if not path.is_file():
            raise NoMetallib(f"{VARIABLE} names {named}, which is not a file")
        return path if path.suffix != ".whl" else _unpacked(path, cache_folder() / f"{path.stem}.metallib")
    folder = cache_folder()
    target = folder / f"mlx-{version('mlx')}-{PLATFORM}.metallib"
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=folder) as fresh:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a process that finds another one downloading waits for its result
            return target if target.is_file() else _unpacked(_download(Path(fresh)), target)
    except OSError as error:
        raise NoMetallib(f"{folder} cannot hold the kernels: {error}") from None


def _download(folder: Path) -> Path:
    """The wheel, in this folder."""
    wanted = f"mlx-metal=={version('mlx')}"
    options = ["--no-deps", "--only-binary=:all:", "--platform", PLATFORM, "--disable-pip-version-check", "-q"]
    options += ["--retries", "1", "--timeout", "15", "-d", str(folder)]
    try:
        run = subprocess.run(
            [*_pip(), "download", wanted, *options], capture_output=True, text=True, timeout=PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoMetallib(f"pip could not download {wanted}: {error}") from None
    wheels = list(folder.glob("mlx_metal-*.whl"))
    if run.returncode or not wheels:
        reason = run.stderr.strip().splitlines()[-1:] or ["no wheel appeared"]
        raise NoMetallib(f"pip could not download {wanted}: {reason[0]}")
    return wheels[0]


def _pip() -> list[str]:
    """This environment's pip, or the one on the path where the environment has none."""
    has_pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0
    return [sys.executable, "-m", "pip"] if has_pip else ["pip"]


def _unpacked(wheel: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            partial.write_bytes(archive.read(MEMBER))
    except (zipfile.BadZipFile, KeyError) as error:
        raise NoMetallib(f"{wheel} has no {MEMBER}: {error}") from None
    partial.replace(target)
    return target
