"""What goes to the hub and what stays here, and what failures of the hub mean."""

import errno
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.paths import ROOT

from pg_mlx.checkpoint import hub
from pg_mlx.errors import InputError, PgMlxError


class Network(Exception):
    """Stands for an error of a network library that huggingface_hub does not catch."""


def fail_with(error: Exception, cached: Path | None = None) -> Any:
    """A `snapshot_download` that fails, unless it is asked for what is cached."""

    def snapshot_download(repo_id: str, *, local_files_only: bool, **_: Any) -> str:
        if local_files_only and cached is not None:
            return str(cached)
        raise error

    return snapshot_download


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["disk is full", "some/model"]),
        (RuntimeError("Data processing error: No space left on device (os error 28)"), ["disk is full"]),
        (PermissionError(errno.EACCES, "Permission denied", "/cache"), ["could not store", "denied: /cache"]),
        (Network("two\nlines"), ["some/model", "could not be reached", "Network: two lines"]),
    ],
)
def test_failures_at_run_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail_with(error))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(PgMlxError) as raised:
        hub.resolve("some/model")
    assert raised.value.exit_code == 1
    assert raised.value.__cause__ is error
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        (["config.json", "model.safetensors"], True),
        (["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], True),
        (["config.json", "model-00001-of-00002.safetensors"], False),
        (["config.json"], False),
        (["model.safetensors"], False),
    ],
)
def test_only_a_whole_snapshot_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: list[str], whole: bool
) -> None:
    cached = tmp_path / "cached"
    cached.mkdir()
    for name in files:
        (cached / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail_with(Network("gone"), cached))
    if whole:
        assert hub.resolve("some/model") == cached
    else:
        with pytest.raises(PgMlxError, match="does not hold all of it"):
            hub.resolve("some/model")


@pytest.mark.parametrize(("terminal", "disabled"), [(False, True), (True, False)])
def test_bars_follow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, terminal: bool, disabled: bool
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr("huggingface_hub.utils.tqdm.HF_HUB_DISABLE_PROGRESS_BARS", None, raising=False)
    enable_progress_bars()
    seen = []

    def snapshot_download(*_: Any, **__: Any) -> str:
        seen.append(are_progress_bars_disabled())
        return str(tmp_path)

    (tmp_path / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal, write=lambda _: None))
    hub.resolve("some/model")
    assert seen == [disabled]
    assert not are_progress_bars_disabled()  # as it was


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, where asking the hub is a failure of its own kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))

    def asked(repo: str, revision: str | None, wanted: object) -> Path:
        raise LookupError(f"the hub was asked for {repo}@{revision}")

    monkeypatch.setattr(hub, "_download", asked)
    return tmp_path


def test_local_folders_are_themselves(no_hub: Path) -> None:
    folder = no_hub / "owner" / "name"
    folder.mkdir(parents=True)
    for given in ("owner/name", "./owner/name", "owner/name/", folder, str(folder), Path("owner/name")):
        assert hub.resolve(given).resolve() == folder.resolve()
    assert hub.resolve("~/owner/name") == folder
    assert hub.resolve("owner") == Path("owner")


def test_what_goes_to_the_hub(no_hub: Path) -> None:
    with pytest.raises(LookupError, match=r"google/paligemma2-3b-pt-224@float16$"):
        hub.resolve("google/paligemma2-3b-pt-224", "float16")


@pytest.mark.parametrize(
    "given",
    [
        "./missing",
        "../owner/missing",
        ".hidden/missing",
        "/no/such",
        "/nosuch",
        "~/missing",
        "~nobody-of-this-name/missing",
        "owner\\name",
        "C:\\models\\pg",
        "a/b/c",
        "owner/name/",
        "owner/na me",
        "owner/name@main",
        "here/missing",
        "owner/name\n",
        Path("owner/name"),
    ],
)
def test_missing_folders_stay_local(no_hub: Path, given: str | Path) -> None:
    (no_hub / "here").mkdir()
    with pytest.raises(InputError) as raised:
        hub.resolve(given)
    assert str(raised.value).startswith(f"no such folder: {str(given).strip()}")
    assert "\n" not in str(raised.value)
    assert "owner/name)" not in str(raised.value)


def test_a_single_word_learns_what_a_repository_looks_like(no_hub: Path) -> None:
    with pytest.raises(InputError, match=r"^no such folder: paligemma \(a hub repository is written owner/name\)$"):
        hub.resolve("paligemma")


@pytest.mark.parametrize("name", ["model.safetensors", "weights.npz"])
def test_a_file_is_not_a_folder(no_hub: Path, name: str) -> None:
    (no_hub / name).touch()
    for given in (name, no_hub / name):
        with pytest.raises(InputError, match=f"a folder is needed.*{name}"):
            hub.resolve(given)


def test_names_that_cannot_be(no_hub: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        hub.resolve("")
    with pytest.raises(InputError, match="folder"):
        hub.resolve("/" + "x" * 5000)


def test_import_is_light() -> None:
    code = "import sys, pg_mlx.checkpoint.hub; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
