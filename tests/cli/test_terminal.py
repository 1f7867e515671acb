"""--show: which terminals show pictures, what is sent to them, and what happens elsewhere."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import ROOT
from helpers.regions import scene
from helpers.service import SCENE, alone
from helpers.terminal import Terminal
from PIL import Image

from pg_mlx.cli import show, terminal
from pg_mlx.cli.pictures import Item
from pg_mlx.cli.writers import Success
from pg_mlx.generation import Generation, SamplingOptions, Stats
from pg_mlx.processor import load_image
from pg_mlx.regions.draw import annotate

pytestmark = pytest.mark.ops("cpu", reason="what the command reads and prints does not depend on the operations")

ASKED = ("generate", "-i", str(SCENE), "-p", "detect red circle", "--show")
SIZE = (80, 24, 800, 480)
STATS = Stats(0, 0, 0, 0, 1, 0, 1, 0, 0)


# --- which terminals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, "unknown"),
        ({"TERM": "xterm-256color", "TMUX": "/tmp/t", "KITTY_WINDOW_ID": "1"}, "unknown"),
        ({"TERM": "xterm-256color"}, "unknown"),
        ({"TERM": "nsterm", "TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "dumb"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_environment_says_what_a_terminal_is(environment: dict[str, str], expected: str | None) -> None:
    assert terminal.by_name(environment) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("\x1b_Gi=31;OK\x1b\\\x1bP>|kitty(0.36)\x1b\\\x1b[?62;c", "kitty"),
        ("\x1bP>|iTerm2 3.5.4\x1b\\\x1b[?62;4c", "iterm2"),
        ("\x1bP>|foot(1.19)\x1b\\\x1b[?62;4;22c", "sixel"),
        ("\x1b[?4;1c", None),  # a VT132, whose own number is 4
        ("\x1bP>|VTE(7600)\x1b\\\x1b[?65;1;9c", None),
        ("", None),
    ],
    ids=ascii,
)  # fmt: skip
def test_a_terminals_own_answer_is_understood(answer: str, expected: str | None) -> None:
    assert terminal.understood(answer) == expected


# --- what is sent ---------------------------------------------------------------------------------------


def test_iterm2_gets_a_file_and_kitty_gets_pieces() -> None:
    image = scene((1600, 900))
    data = terminal.encoded(image, "iterm2", SIZE)
    match = re.fullmatch(rb"\x1b\]1337;File=inline=1;size=(\d+);width=(\d+);preserveAspectRatio=1:([\w+/=]+)\a\n", data)
    assert match and int(match[2]) <= 80
    png = base64.b64decode(match[3])
    assert len(png) == int(match[1])
    shown = Image.open(io.BytesIO(png))
    assert shown.width <= 800 and shown.height <= 440 and shown.width / shown.height == pytest.approx(16 / 9, rel=0.01)
    pieces = re.findall(rb"\x1b_G([^;]*);([\w+/=]+)\x1b\\", terminal.encoded(image, "kitty", SIZE))
    assert len(pieces) > 1 and all(len(piece) <= 4096 for _, piece in pieces)
    assert pieces[0][0].startswith(b"a=T,f=100,q=2,c=") and pieces[0][0].endswith(b",m=1")
    assert [head for head, _ in pieces[1:]] == [b"m=1"] * (len(pieces) - 2) + [b"m=0"]
    assert b"".join(piece for _, piece in pieces) == match[3]
    assert Image.open(io.BytesIO(base64.b64decode(match[3]))).size == shown.size


def test_a_small_picture_keeps_its_size_and_unknown_pixels_are_guessed() -> None:
    data = terminal.encoded(scene((50, 40)), "iterm2", SIZE)
    assert b";width=5;" in data
    data = terminal.encoded(scene((5000, 40)), "iterm2", (100, 30, 0, 0))
    assert b";width=100;" in data


@pytest.mark.parametrize("size", [(1, 1), (31, 7), (64, 60), (200, 13)], ids=str)
def test_sixels_are_the_picture(size: tuple[int, int]) -> None:
    image = scene(size)
    expected = np.asarray(image.quantize(256).convert("RGB")).astype(int)
    assert abs(unsixel(terminal.sixel(image)) - expected).max() <= 2  # colours are in percent


def unsixel(data: bytes) -> np.ndarray:
    """A terminal's side of it: int [H, W, 3]; every pixel must be painted."""
    match = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\', data.decode("ascii"), re.DOTALL)
    assert match
    width, height = int(match[1]), int(match[2])
    canvas, colors = np.full((height + 5, width, 3), -1), {}
    color, x, y = 0, 0, 0
    for number, defined, count, letter, control in re.findall(
        r"#(\d+)(?:;2;([\d;]+))?|(?:!(\d+))?([?-~])|([$-])", match[3]
    ):
        if number:
            color = int(number)
            if defined:
                colors[color] = [round(int(part) * 2.55) for part in defined.split(";")]
        elif letter:
            for bit in range(6):
                if (ord(letter) - 63) >> bit & 1:
                    canvas[y + bit, x : x + int(count or 1)] = colors[color]
            x += int(count or 1)
            assert x <= width
        else:
            x, y = 0, y + 6 * (control == "-")
    assert (canvas[:height] >= 0).all() and (canvas[height:] == -1).all()
    return canvas[:height]


# --- on a terminal --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "answer", "begins"),
    [
        ({"TERM_PROGRAM": "iTerm.app"}, None, "\x1b]1337;File=inline=1"),
        ({}, "\x1b_Gi=31;OK\x1b\\\x1b[?62c", "\x1b_Ga=T,f=100"),
        ({}, "\x1b[?62;4c", '\x1bPq"1;1;'),
    ],
    ids=["iterm2", "kitty", "sixel"],
)
def test_the_drawn_answer_comes_behind_the_text(
    tmp_path: Path, variables: dict[str, str], answer: str | None, begins: str
) -> None:
    found = alone("detect red circle", (SCENE,), SamplingOptions())
    with Terminal(*ASKED, home=tmp_path, patient=bool(answer), **variables) as shell:
        if answer:
            shell.until("\x1b[c")
            shell.type(answer)
        shell.until("red circle: ")
        shell.until(begins)
        code, rest = shell.end()
    assert code == 0 and "Gi=31;OK" not in rest and "[?62" not in rest
    if begins.startswith("\x1b]"):
        image = Image.open(io.BytesIO(base64.b64decode(re.findall(r":([\w+/=]+)\a", rest)[0])))
        expected = annotate(load_image(SCENE), found.regions)
        expected.thumbnail((800, 440))
        assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_a_silent_terminal_is_waited_for_shortly_and_the_picture_is_opened(tmp_path: Path) -> None:
    (tmp_path / "xdg-open").write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/opened.png\n')
    (tmp_path / "xdg-open").chmod(0o755)
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    with Terminal(*ASKED, home=tmp_path, DISPLAY=":9", **places) as shell:
        shell.until("\x1b[c")
        shell.until("red circle: ")
        code, rest = shell.end()
    assert code == 0 and "File=" not in rest
    [written] = tmp_path.glob("pg-mlx-*/scene.png")
    found = alone("detect red circle", (SCENE,), SamplingOptions())
    assert np.array_equal(np.asarray(Image.open(written)), np.asarray(annotate(load_image(SCENE), found.regions)))
    deadline = time.monotonic() + 30
    while not (tmp_path / "opened.png").exists():  # by another process
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_a_screen_or_a_terminal_one_line_says_so(tmp_path: Path) -> None:
    with Terminal(*ASKED, home=tmp_path, TERM="dumb") as shell:
        code, shown = shell.end()
    assert code == 0 and "red circle: " in shown and shown.count("--annotate OUT writes the pictures") == 1
    done = subprocess.run(
        [sys.executable, "-m", "pg_mlx", *ASKED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout == alone("detect red circle", (SCENE,), SamplingOptions()).text + "\n"
    assert done.stderr.count("shown on a terminal only") == 1 and "\x1b" not in done.stderr


def test_few_windows_are_opened(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    opened: list[str] = []
    monkeypatch.setattr(show, "open_picture", lambda image, name: not opened.append(name))
    shower = show.Show()
    shower.protocol, shower.terminal = None, True
    capsys.readouterr()
    for number in range(9):
        item = Item("", str(number), image=scene((9, 9)))
        shower.add(Success(item, Generation("", [], "stop", STATS, image_size=(9, 9))))
    assert opened == ["0", "1", "2", "3"]
    assert "only 4 pictures were opened; --report" in capsys.readouterr().err
