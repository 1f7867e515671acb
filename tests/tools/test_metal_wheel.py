"""Where the shipped kernels come from: downloaded once, whole, and with a reason where that fails."""

from __future__ import annotations

import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from tools.metal import wheel


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(wheel.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return wheel.cache_folder()


def make_wheel(folder: Path) -> Path:
    made = folder / f"mlx_metal-1-py3-none-{wheel.PLATFORM}.whl"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(wheel.MEMBER, b"MTLB")
    return made


def test_two_at_once_download_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads, paths, second = [], [], threading.Event()

    def download(folder: Path) -> Path:
        downloads.append(folder)
        second.wait(1)  # the other one is waiting by now
        return make_wheel(folder)

    monkeypatch.setattr(wheel, "_download", download)
    threads = [threading.Thread(target=lambda: paths.append(wheel.metallib())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1 and len(set(paths)) == 1
    assert paths[0].read_bytes() == b"MTLB"
    assert sorted(path.name for path in cache.iterdir()) == sorted([paths[0].name, "lock"])


@pytest.mark.parametrize("code", ["raise SystemExit('no such version')", "import time; time.sleep(60)", ""])
def test_a_failed_download_says_why_and_leaves_nothing(code: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "_pip", lambda: ["python3", "-c", code])
    monkeypatch.setattr(wheel, "PATIENCE_S", 1)
    with pytest.raises(wheel.NoMetallib, match="pip could not download mlx-metal=="):
        wheel.metallib()
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_a_wheel_cut_short_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(folder: Path) -> Path:
        whole = make_wheel(folder)
        whole.write_bytes(whole.read_bytes()[:40])
        return whole

    monkeypatch.setattr(wheel, "_download", download)
    with pytest.raises(wheel.NoMetallib, match="has no mlx"):
        wheel.metallib()
    assert [path.name for path in cache.iterdir()] == ["lock"]


def test_a_named_file_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", None)  # nothing is downloaded
    monkeypatch.setenv(wheel.VARIABLE, str(make_wheel(tmp_path)))
    assert wheel.metallib().read_bytes() == b"MTLB"
    monkeypatch.setenv(wheel.VARIABLE, str(wheel.metallib()))
    assert wheel.metallib().suffix == ".metallib"
    monkeypatch.setenv(wheel.VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(wheel.NoMetallib, match="not a file"):
        wheel.metallib()
