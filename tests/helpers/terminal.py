"""A program on a terminal of its own, and a person who types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

from helpers.paths import ROOT

WAIT_S = 60.0

PATIENT = "import sys; from pg_mlx.cli import command, terminal; terminal.ANSWER_S = 60.0; command(sys.argv[1:])"
"""pg-mlx that waits long for a terminal's answer: on a busy machine the test is slow to give it."""


class Terminal:
    """`pg-mlx` with stdin, stdout and stderr on a terminal of 80 x 24 letters, which is its controlling one."""

    def __init__(self, *arguments: str, home: Path, patient: bool = False, **environment: str):
        """home: the folder of the user's files. environment: variables that are set; those that tell of the terminal
        around the tests are not. patient: as PATIENT."""
        self.shown = ""
        self._here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 800, 480))
        kept = {
            name: value
            for name, value in os.environ.items()
            if not re.match("TERM|LC_TERM|KITTY|TMUX|DISPLAY|WAY", name)
        }
        self.process = subprocess.Popen(
            [sys.executable, *(("-c", PATIENT) if patient else ("-m", "pg_mlx")), *arguments],
            cwd=ROOT,
            env={**kept, "TERM": "xterm-256color", "HOME": str(home), "INPUTRC": "/dev/null", **environment},
            stdin=there,
            stdout=there,
            stderr=there,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(there)
        self._seen = 0

    def type(self, text: str) -> None:
        os.write(self._here, text.encode())

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._here)

    def until(self, text: str) -> str:
        """Wait for this text behind what was waited for before; returns what came, up to its end."""
        deadline = time.monotonic() + WAIT_S
        while (found := self.shown.find(text, self._seen)) < 0:
            assert self._read(deadline), f"no {text!r} in {self.shown[self._seen :]!r}"
        start, self._seen = self._seen, found + len(text)
        return self.shown[start : self._seen]

    def press(self, key: str, text: str) -> None:
        """Press a key until this text has come. CPython sees a Ctrl-C between readline's prompt and its wait for a
        key only with the next key, so a person presses again."""
        deadline = time.monotonic() + WAIT_S
        while self.shown.find(text, self._seen) < 0:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown[self._seen :]!r}"
            self.type(key)
            patience = time.monotonic() + 3.0
            while self.shown.find(text, self._seen) < 0 and self._read(patience):
                pass
        self.until(text)

    def more(self, count: int) -> None:
        """Wait for so many letters behind what was waited for before."""
        deadline = time.monotonic() + WAIT_S
        while len(self.shown) < self._seen + count:
            assert self._read(deadline), self.shown[self._seen :]

    def end(self) -> tuple[int, str]:
        """Wait for the end of the program: its exit code, and what came behind what was waited for."""
        deadline = time.monotonic() + WAIT_S
        while self._read(deadline):
            pass
        return self.process.wait(WAIT_S), self.shown[self._seen :]

    def _read(self, deadline: float) -> bool:
        """Take up what came; False at the end, or if nothing came in time."""
        if not select.select([self._here], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            more = os.read(self._here, 1 << 16)
        except OSError:  # Linux: nobody holds the other end any more
            return False
        self.shown += more.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(more)
