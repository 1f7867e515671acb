"""The packages of a helper, resolved and unpacked for its platform by uv, whatever machine this is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from platform import machine

from pg_mlx.errors import InputError, PgMlxError

PLATFORMS = {"macos": "aarch64-apple-darwin", "linux": f"{machine()}-manylinux_2_35"}
"""Our names and uv's. Linux is that of this machine, since a helper for it is made to be tried."""

WORKER_LEAVES_OUT = ("huggingface-hub", "tokenizers", "tqdm")
"""What `pg-mlx worker` never imports, if its models are folders that hold tokenizer.model."""


def install(clone: Path, target: Path, *, platform: str, python: str, minimum: str, without: list[str]) -> None:
    """Put pg_mlx and what it needs into a folder, from binary wheels alone. Raises PgMlxError.

    minimum: macOS, as 14.0. without: distributions to leave out, and what only they need."""
    uv = shutil.which("uv")
    if uv is None:
        raise InputError("uv resolves and unpacks the packages: pip install uv, or give --packages FOLDER")
    source = target.with_suffix(
        ".source"
    )  # a copy, since setuptools would leave its build in the clone, and find it again
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(clone / name, source)
    shutil.copytree(clone / "pg_mlx", source / "pg_mlx", ignore=shutil.ignore_patterns("__pycache__"))
    never = source / "without.txt"
    never.write_text("".join(f'{name}; python_version < "0"\n' for name in without))
    command = [
        uv, "pip", "install", "--quiet", "--link-mode", "copy", "--target", str(target),
        "--python-platform", PLATFORMS[platform], "--python-version", python, "--overrides", str(never),
        "--only-binary", ":all:", "--no-binary", "pg_mlx", str(source),
    ]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": minimum}, stderr=subprocess.PIPE)
    shutil.rmtree(source)
    if done.returncode:
        raise PgMlxError(f"uv cannot install the packages: {done.stderr.decode(errors='replace').strip()}")
