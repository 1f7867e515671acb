"""A small shell: the commands of a block, run in this process where they are pg_mlx's own."""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path

from helpers.paths import ROOT
from pg_mlx.cli import main

CONTROL = ("&&", ";", "|", "&", "\n")
SCRIPTS = {"generate.py": "generate", "convert.py": "convert", "train.py": "train"}


class Failed(Exception):
    """A command of a page did not work."""


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a block, one after the other, as lists of words. Raises Failed for what is not known here."""
    for line in text.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars="&;|<>")
        reader.whitespace_split, reader.commenters = True, "#"
        words = list[str]()
        for word in [*reader, "\n"]:
            if word in ("|", "&", "<", ">>"):
                raise Failed(f"no {word} in this shell: {line}")
            if word not in CONTROL:
                words.append(word)
            elif words:
                yield words
                words = []


@dataclass
class Shell:
    """The state of one page's shell: the environment that it has set, the server that it has started."""

    port: int = 8080
    server: subprocess.Popen[bytes] | None = None
    output: str = ""
    notes: list[str] = field(default_factory=list)

    def run(self, text: str) -> None:
        """Run the commands of a block. Raises Failed with the command and what it said."""
        for words in commands(text):
            self._one(words)

    def close(self) -> None:
        """End the server."""
        if self.server:
            self.server.terminate()
            self.server.wait(30)

    def _one(self, words: list[str]) -> None:
        target = None
        if ">" in words:
            at = words.index(">")
            words, target = words[:at] + words[at + 2 :], Path(words[at + 1])
        code, out, error = self._dispatch(words)
        self.output = out
        if target:
            target.write_text(out)
        if code:
            raise Failed(f"{shlex.join(words)}\nexit code {code}\n{error[-2000:]}")

    def _dispatch(self, words: list[str]) -> tuple[int, str, str]:
        name, *arguments = words
        if name in ("python", "python3"):
            if arguments[:2] == ["-m", "pip"]:
                return self._install(arguments[2:])
            if arguments[0] in SCRIPTS:
                return captured([SCRIPTS[arguments[0]], *arguments[1:]], arguments[0])
            if arguments[:2] == ["-m", "pg_mlx"]:
                return captured(arguments[2:], None)
            return script(arguments)
        if name == "pip":
            return self._install(arguments)
        if name == "pg-mlx":
            return self._serve(arguments[1:]) if arguments[0] == "serve" else captured(arguments, None)
        if name == "curl" and shutil.which("curl"):
            words = [word.replace(":8080", f":{self.port}") for word in [*words, "--fail", "--silent", "--show-error"]]
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            return done.returncode, done.stdout, done.stderr
        raise Failed(f"this shell does not know {name}")

    def _install(self, arguments: list[str]) -> tuple[int, str, str]:
        """Nothing is installed here; the names of extras are checked."""
        asked = {extra for word in arguments for extra in re.findall(r"(?:^\.|pg_mlx)\[(.*?)\]", word)}
        unknown = {name for extra in asked for name in extra.split(",")} - extras()
        self.notes.append("pip install: the extras were checked, nothing was installed")
        return (1, "", f"no extra {unknown}") if unknown or arguments[0] != "install" else (0, "", "")

    def _serve(self, arguments: list[str]) -> tuple[int, str, str]:
        """Started, and left running for the blocks that follow."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "pg_mlx", "serve", *arguments, "--port", str(self.port)]
        log = Path("server.log")
        with log.open("wb") as file:
            self.server = subprocess.Popen(command, stdout=file, stderr=file)
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                return 0, "", ""
            if self.server.poll() is not None:
                break
            time.sleep(0.1)
        return 1, "", log.read_text()


def extras() -> set[str]:
    """What `pip install pg_mlx[...]` may ask for."""
    _, table = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]\n")
    return set(re.findall(r"^([\w-]+) = ", table.split("\n[")[0], re.MULTILINE))


def captured(arguments: list[str], program: str | None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command of pg_mlx, run in this process."""
    with streams() as (out, error):
        try:
            code = main(arguments, program)
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), error.getvalue()


def script(arguments: list[str]) -> tuple[int, str, str]:
    """The same for another script or module of this repository."""
    before = sys.argv
    with streams() as (out, error):
        try:
            if arguments[0] == "-m":
                sys.argv = arguments[1:]
                runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = arguments
                runpy.run_path(arguments[0], run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(bool(end.code))
        finally:
            sys.argv = before
    return code, out.getvalue(), error.getvalue()


@contextmanager
def streams() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """stdout and stderr, kept as text. Python writes bytes to stdout's buffer, too."""
    out, error = io.BytesIO(), io.BytesIO()
    texts = [io.TextIOWrapper(stream, encoding="utf-8", write_through=True) for stream in (out, error)]
    kept = io.StringIO(), io.StringIO()
    with redirect_stdout(texts[0]), redirect_stderr(texts[1]):
        yield kept
    for stream, text in zip((out, error), kept, strict=True):
        text.write(stream.getvalue().decode(errors="replace"))


def environment(shared: Path) -> dict[str, str]:
    """In which the pages' commands run: the hub is the cache of the shared folder, and nothing is fetched."""
    own = {
        "HF_HOME": str(shared),
        "HF_HUB_CACHE": str(shared / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PG_MLX_OPS": "auto",
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **own, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
