"""chat on a terminal: commands, completion, history, Ctrl-C and Ctrl-D; and with its lines in a pipe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import ROOT
from helpers.service import SCENE, alone
from helpers.terminal import Terminal
from PIL import Image

from pg_mlx.cli.chat import completions
from pg_mlx.cli.writers import region_line
from pg_mlx.generation import SamplingOptions
from pg_mlx.processor import load_image
from pg_mlx.regions.draw import annotate

GREEDY = SamplingOptions()
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"

pytestmark = pytest.mark.ops("cpu", reason="what the command reads and prints does not depend on the operations")


def piped(lines: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pg_mlx", "chat", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(home)},
        timeout=120,
    )


def test_a_session_on_a_terminal(tmp_path: Path) -> None:
    caption, found = alone("caption en", (SCENE,), GREEDY), alone("detect red circle ; blue star", (SCENE,), GREEDY)
    dropped = tmp_path / "my picture.png"
    dropped.write_bytes(SCENE.read_bytes())
    with Terminal("chat", home=tmp_path) as terminal:
        terminal.until("/help explains")
        terminal.until("\n> ")
        terminal.type("ocr\n")
        terminal.until("error: there is no picture yet: /image PATH\n> ")
        terminal.type(f"{str(dropped).replace(' ', chr(92) + ' ')} \n")  # as a terminal writes a dropped file
        terminal.until("384 x 512\nmy_picture> ")
        terminal.type("capt\t\n")
        assert f"{caption.text}\n" in terminal.until("my_picture> ")
        terminal.type("/detect red circle ; blue star\n")
        said = terminal.until("my_picture> ")
        assert len(found.regions) > 1 and "<loc" not in said
        assert "".join(f"{region_line(region)}\n" for region in found.regions) in said
        terminal.type("/detect\n")
        terminal.until("error: /detect needs THING ; THING\nmy_picture> ")
        terminal.type(f"/sa\t{tmp_path}/out.png\n")
        terminal.until(f"wrote {tmp_path}/out.png\nmy_picture> ")
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "out.png")), np.asarray(annotate(load_image(SCENE), found.regions))
        )
        terminal.type(f"{UP}\n")  # the line before
        terminal.until("is there already")
        terminal.until("my_picture> ")
        terminal.type(f"/image {SCENE.parent}/cl\t\n")
        terminal.until("clutter.png: ")
        terminal.until("clutter> ")
        terminal.type("/save x.json\n")
        terminal.until("no answer to save")
        terminal.until("clutter> ")
        terminal.type("/help\n")
        terminal.until("/segment THING ; THING")
        terminal.until("clutter> ")
        terminal.type(CTRL_D)
        code, _ = terminal.end()
        assert code == 0
    history = tmp_path / ".pg_mlx_history"
    assert history.stat().st_mode & 0o777 == 0o600 and "caption en" in history.read_text()
    with Terminal("chat", "--image", str(SCENE), "--show", home=tmp_path, TERM_PROGRAM="iTerm.app") as again:
        again.until("scene> ")
        again.type("/show\n")  # the picture alone
        again.until("]1337;File=inline=1")
        again.until("scene> ")
        again.type("/detect red circle\n")
        again.until("red circle: ")
        again.until("]1337;File=inline=1")
        again.until("scene> ")
        again.type(UP)
        again.type(UP)
        again.type(f"{UP}\n")
        again.until("/segment THING ; THING")
        again.until("scene> ")
        again.type("/quit\n")
        assert again.end()[0] == 0


def test_ctrl_c_stops_an_answer_and_not_the_program(tmp_path: Path) -> None:
    endless = ("--temp", "9", "--seed", "5", "--max-tokens", "8000")
    with Terminal("chat", "--image", str(SCENE), "--history", "", *endless, home=tmp_path) as terminal:
        terminal.until("scene> ")
        terminal.type("caption en\n")
        terminal.until("caption en\n")
        terminal.more(20)
        terminal.type(CTRL_C)
        terminal.until("(stopped)\nscene> ")
        terminal.press(CTRL_C, "(Ctrl-D or /quit ends)\nscene> ")  # at the prompt
        terminal.type("/save answer.gif2\n")
        terminal.until("the suffix says what is written")
        terminal.until("scene> ")
        terminal.type(CTRL_D)  # only the prompt takes it as the end
        assert terminal.end()[0] == 0 and list(tmp_path.iterdir()) == []


def test_lines_may_come_through_a_pipe(tmp_path: Path) -> None:
    found = alone("segment red circle", (SCENE,), GREEDY)
    target = tmp_path / "a.json"
    done = piped(f"/segment red circle\n/save {target}\n\n/save {tmp_path}/a.txt\n", "-i", str(SCENE), home=tmp_path)
    assert (done.returncode, done.stdout) == (0, found.text + "\n"), done.stderr
    saved = json.loads(target.read_text())
    assert (
        saved["prompt"] == "segment red circle"
        and saved["regions"] == json.loads(json.dumps(found.to_json()))["regions"]
    )
    assert (tmp_path / "a.txt").read_text() == found.text + "\n"
    done = piped("/image nowhere.png\n/quit\nocr\n", "-i", str(SCENE), home=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and "error: no such picture: nowhere.png" in done.stderr
    done = piped("", "-i", "nowhere.png", home=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_completion_knows_commands_tasks_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert completions("/s") == ["/segment ", "/show", "/save "]
    assert completions("de") == ["describe en", "detect "] and "answer en " in completions("")
    (tmp_path / "a b.png").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    assert completions("/image ") == ["/image a b.png", "/image folder/"]
    assert completions(f"/save {tmp_path}/.h") == [f"/save {tmp_path}/.hidden"]
    assert completions("/detect c") == [] and completions("nonsense") == []
