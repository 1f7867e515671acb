"""Running the commands in processes of their own, and a small checkpoint to run them on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from helpers.paths import ROOT

CAT = ROOT / "tests" / "cat.jpg"

KILLED_CONVERSION = """
import json, os, sys
from pg_mlx.files import folder
from pg_mlx.files.shards import ShardWriter
from pg_mlx.cli import main

if "RENAMED" in os.environ:
    folder.exchange = lambda one, other: False

number, last, parent = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
events = []

def reached(event):
    events.append(event)
    if len(events) == last:
        os.kill(os.getpid(), number)

def hook(event, arguments):
    changes = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree")
    if event in changes and str(arguments[0]).startswith(parent):
        reached(event)

def add_chunks(self, name, *rest, add_chunks=ShardWriter.add_chunks):
    reached("tensor")
    add_chunks(self, name, *rest)

ShardWriter.add_chunks = add_chunks
sys.addaudithook(hook)
code = main(["convert", *sys.argv[4:]], program="convert.py")
if last == 0:
    print(json.dumps(events))
sys.exit(code)
"""
"""convert.py that sends itself a signal just before the n-th tensor or change beside the target; lists them for 0."""


def tiny_checkpoint(folder: Path) -> Path:
    """A random checkpoint with a small trained vocabulary, complete as a downloaded one."""
    from tools import random_checkpoint

    raw = random_checkpoint.raw_config("tiny-56", vocab_size=1856)
    random_checkpoint.write(folder, raw, None, random_checkpoint.SMALL_TOKENIZER)
    return folder


def run(*arguments: str, input: bytes | None = None) -> subprocess.CompletedProcess:
    """generate.py with text output; stdin is empty unless given. The prompt is "ocr" unless given."""
    if not {"--prompt", "-p"} & set(arguments):
        arguments += ("--prompt", "ocr")
    done = subprocess.run(
        [sys.executable, str(ROOT / "generate.py"), *arguments],
        cwd=ROOT,
        input=input or b"",
        capture_output=True,
        check=False,
        timeout=120,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def ask(model: Path | str, image: Path | str, *flags: str, **kwargs: Any) -> subprocess.CompletedProcess:
    """`run` with a checkpoint and a picture; the answer has up to four tokens."""
    return run("--model", str(model), "--image", str(image), "--max-tokens", "4", *flags, **kwargs)


def assert_one_line(done: subprocess.CompletedProcess, code: int, words: str) -> None:
    """The failure is one line on stderr that names what is wrong, and nothing on stdout."""
    lines = [line for line in done.stderr.splitlines() if "no fast BLAS" not in line]
    assert done.returncode == code, done.stderr
    assert len(lines) == 1 and words in lines[0], lines
    assert done.stdout == ""
