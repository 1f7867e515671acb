"""What PyInstaller puts into an app that uses pg_mlx. It finds this folder by the entry point `pyinstaller40`."""

from __future__ import annotations

from pathlib import Path


def hook_dirs() -> list[str]:
    """The folders with hooks."""
    return [str(Path(__file__).parent)]
