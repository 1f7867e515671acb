"""Publishing what was converted: the name and the login are tried first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from helpers.checkpoints import PARTS_OF_A_FOLDER, names
from helpers.convert_command import assert_refused, call, convert


@pytest.mark.parametrize("name", ["../x", "a/b/c", "a//b", "-x", "x..y", "a b"])
def test_a_name_that_cannot_be_uploaded_to_is_refused_first(
    name: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    done = call(capsys, "--hf-path", source, "--mlx-path", tmp_path / "out", f"--upload-repo={name}")
    assert_refused(done, 2, "cannot be the name of a hub repository")
    assert_refused(call(capsys, "--hf-path", source, "--private"), 2, "--upload-repo")
    assert names(tmp_path) == []


def test_without_a_login_nothing_is_converted(source: Path, tmp_path: Path):
    """Nothing listens on port 9."""
    done = convert(source, tmp_path / "out", "--upload-repo", "someone/model", HF_ENDPOINT="http://127.0.0.1:9",
                   HF_TOKEN="hf_none", HF_HUB_OFFLINE="0")  # fmt: skip
    assert_refused(done, 1, "someone/model", "hf auth login")
    assert done.stdout == "" and names(tmp_path) == []


class FakeHub:
    """What HfApi is asked, in order."""

    asked: ClassVar[list[tuple[str, dict[str, object]]]] = []
    fails = ""

    def __getattr__(self, what: str) -> Callable[..., dict[str, str]]:
        def answer(*given: object, **options: object) -> dict[str, str]:
            self.asked.append((what, {"given": given, **options}))
            if what == self.fails:
                raise OSError("the hub says no")
            return {"name": "me"}

        return answer


@pytest.mark.parametrize("fails", ["", "create_repo", "upload_folder"])
def test_an_upload(
    fails: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The repository is made before anything is converted; if sending fails, the folder is complete."""
    hub = type("Hub", (FakeHub,), {"asked": [], "fails": fails})
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    out = tmp_path / "out"
    done = call(capsys, "--hf-path", source, "--mlx-path", out, "--no-check", "--upload-repo", "mine", "--private")
    assert [what for what, _ in hub.asked] == ["whoami", "create_repo", "upload_folder"][
        : 2 if fails == "create_repo" else 3
    ]
    assert hub.asked[1][1] == {"given": ("me/mine",), "private": True, "exist_ok": True}
    if fails == "create_repo":
        assert_refused(done, 1, "does not let you write to me/mine", "says no")
        assert names(tmp_path) == []
        return
    assert names(out) == PARTS_OF_A_FOLDER and hub.asked[2][1]["folder_path"] == out
    if fails:
        assert_refused(done, 1, "me/mine", "is complete")
    else:
        assert done.returncode == 0 and done.stdout.splitlines()[-1].endswith("/me/mine")
