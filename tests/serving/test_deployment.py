"""Files that run the server elsewhere: launchd's and Docker's. Neither program is here, so their parts are checked."""

from __future__ import annotations

import plistlib
import re
import shlex

import pytest
from helpers.paths import ROOT

from pg_mlx.cli import serve

pytestmark = pytest.mark.ops("cpu", reason="computes nothing")


def test_launchd_starts_the_server_and_waits_for_its_answers():
    job = plistlib.loads((ROOT / "examples" / "org.example.pg-mlx.plist").read_bytes())
    program, command, *arguments = job["ProgramArguments"]
    assert program.endswith("/pg-mlx") and command == "serve"
    options = serve.parser("pg-mlx serve").parse_args(arguments)
    assert options.port == 8080 and options.drain < job["ExitTimeOut"]
    assert job["Label"] == "org.example.pg-mlx" and job["RunAtLoad"] is True
    assert job["KeepAlive"] == {"SuccessfulExit": False}


def test_the_image_has_what_it_copies_and_serves():
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = dict[str, list[str]]()
    for line in lines:
        if found := re.match(r"([A-Z]+) (.*)", line):
            steps.setdefault(found[1], []).append(found[2])
    copied = [name for step in steps["COPY"] for name in shlex.split(step)[:-1]]
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {*copied} == kept and all((ROOT / name).exists() for name in copied)
    assert "USER" in steps and steps["ENTRYPOINT"] == ['["pg-mlx"]']
    (start,) = steps["CMD"]
    command, *arguments = re.findall(r'"([^"]*)"', start)
    assert command == "serve" and serve.parser("pg-mlx serve").parse_args(arguments).host == "0.0.0.0"
