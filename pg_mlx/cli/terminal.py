"""Pictures in the text of a terminal: which terminals can, and how they are sent. iTerm2, kitty, and sixel."""

from __future__ import annotations

import base64
import io
import os
import re
import select
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

Protocol = Literal["iterm2", "kitty", "sixel"]

ANSWER_S = 1.0
"""How long a terminal may take to say what it can. Nearly all answer as soon as the network lets them."""
_KITTY_QUERY = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"
_NAME_QUERY = "\x1b[>q"
_ATTRIBUTES_QUERY = "\x1b[c"
"""Every terminal answers it, and answers in order, so nothing more comes behind this answer."""
_ATTRIBUTES = re.compile(r"\x1b\[\?([\d;]*)c")
_CHUNK = 4096
_CELL = (10, 20)
"""Pixels of a letter where the terminal does not say."""
_SIXEL_COLORS = 256


def protocol() -> Protocol | None:
    """How the terminal of stdout shows pictures; None if it cannot, or if stdout is not a terminal. It is asked only
    if its name does not say it, which takes ANSWER_S at most."""
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    known = by_name(os.environ)
    return ask_terminal() if known == "unknown" else known


def by_name(environment: Mapping[str, str]) -> Protocol | Literal["unknown"] | None:
    """What the environment says about the terminal. Inside of tmux and screen it is that of the terminal around them,
    so it says nothing."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if term in ("dumb", "linux", "") or program == "Apple_Terminal":  # Apple's would print the question
        return None
    if environment.get("TMUX") or term.startswith(("screen", "tmux")):
        return "unknown"
    if program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty" or environment.get("KITTY_WINDOW_ID"):
        return "kitty"
    return "unknown"


def ask_terminal() -> Protocol | None:
    """Ask the terminal itself. What was typed meanwhile is lost, so this is not for the middle of a line."""
    import termios

    try:
        with _raw_terminal() as terminal:
            if terminal is None:
                return None
            os.write(terminal, (_KITTY_QUERY + _NAME_QUERY + _ATTRIBUTES_QUERY).encode())
            return understood(_answer(terminal))
    except (OSError, termios.error):  # there is none, or it is no terminal
        return None


def understood(answer: str) -> Protocol | None:
    """What the terminal's answer to the three questions means."""
    if "\x1b_Gi=31;OK" in answer:
        return "kitty"
    if re.search(r"\x1bP>\|(iTerm2|WezTerm|mintty)", answer):
        return "iterm2"
    attributes = _ATTRIBUTES.search(answer)
    return "sixel" if attributes and "4" in attributes[1].split(";")[1:] else None


@contextmanager
def _raw_terminal() -> Iterator[int | None]:
    """The terminal of this process without echo and line editing; None for a process in the background, which must not
    touch it."""
    import termios
    import tty

    terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    try:
        if os.tcgetpgrp(terminal) != os.getpgrp():
            yield None
            return
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal, termios.TCSANOW)
            yield terminal
        finally:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)  # with no rest of an answer for the shell
    finally:
        os.close(terminal)


def _answer(terminal: int) -> str:
    """What the terminal says, up to its attributes, for ANSWER_S at most."""
    deadline, answer = time.monotonic() + ANSWER_S, b""
    while (left := deadline - time.monotonic()) > 0 and not _ATTRIBUTES.search(answer.decode("latin-1")):
        if select.select([terminal], [], [], left)[0]:
            answer += os.read(terminal, 1024)
    return answer.decode("latin-1")


def encoded(image: Image.Image, protocol: Protocol, terminal: tuple[int, int, int, int] | None = None) -> bytes:
    """What is written to the terminal so that it shows the picture, on lines of its own. A picture that is larger than
    the terminal is made smaller.

    terminal: its columns, rows, and width and height in pixels (0 if unknown); by default that of stdout.
    """
    columns, rows, width, height = terminal or _size()
    cell = (width / columns, height / rows) if width and height else _CELL
    room = max(1, int(cell[0] * columns)), max(1, int(cell[1] * max(1, rows - 2)))
    small = image.convert("RGB")
    small.thumbnail(room)
    if protocol == "sixel":
        return sixel(small) + b"\n"
    cells = max(1, min(columns, round(small.width / cell[0])))
    file = io.BytesIO()
    small.save(file, "PNG")
    data = base64.b64encode(file.getvalue())
    if protocol == "iterm2":
        head = f"inline=1;size={len(file.getvalue())};width={cells};preserveAspectRatio=1"
        return b"\x1b]1337;File=" + head.encode() + b":" + data + b"\a\n"
    parts = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    heads = [f"a=T,f=100,q=2,c={cells}," if not number else "" for number in range(len(parts))]
    return (
        b"".join(
            f"\x1b_G{head}m={int(number < len(parts) - 1)};".encode() + part + b"\x1b\\"
            for number, (head, part) in enumerate(zip(heads, parts, strict=True))
        )
        + b"\n"
    )


def sixel(image: Image.Image) -> bytes:
    """The picture in 256 colours, as DEC's terminals had it: six rows at a time, and in these colour by colour, each
    letter saying which of its six pixels have the colour."""
    paletted = image.convert("RGB").quantize(_SIXEL_COLORS)
    pixels = np.asarray(paletted)
    palette = np.asarray(paletted.getpalette(), int).reshape(-1, 3)
    height, width = pixels.shape
    out = [f'\x1bPq"1;1;{width};{height}']
    out += [f"#{color};2;{';'.join(map(str, (rgb * 100 + 127) // 255))}" for color, rgb in enumerate(palette)]
    for top in range(0, height, 6):
        band = pixels[top : top + 6]
        letters = np.zeros((len(palette), width), int)
        for row, colors in enumerate(band):
            letters[colors, np.arange(width)] += 1 << row
        out.append("$".join(f"#{color}{_run_lengths(letters[color])}" for color in np.unique(band)) + "-")
    return "".join([*out, "\x1b\\"]).encode("ascii")


def _run_lengths(letters: np.ndarray) -> str:
    """int [W] in 0..63, as letters from "?"; more than three alike are counted."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(letters)) + 1])
    counts = np.diff(np.concatenate([starts, [len(letters)]]))
    runs = zip((chr(63 + letter) for letter in letters[starts]), counts, strict=True)
    return "".join(f"!{count}{letter}" if count > 3 else letter * count for letter, count in runs)


def _size() -> tuple[int, int, int, int]:
    """Columns, rows, and width and height in pixels of stdout's terminal, the latter 0 if it does not say."""
    import fcntl
    import struct
    import termios

    try:
        size = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
        rows, columns, width, height = struct.unpack("4H", size)
    except (OSError, ValueError):
        return 80, 24, 0, 0
    return columns or 80, rows or 24, width, height
