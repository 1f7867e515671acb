"""The scripts with which shells complete commands and options."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from helpers.commands import ROOT

from pg_mlx.cli import COMMANDS, main, serve

pytestmark = pytest.mark.ops("cpu", reason="it tries options, not what is computed")


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gen"], ["generate"]),
        ([""], list(COMMANDS)),
        (["serve", "--allow-"], ["--allow-origin", "--allow-host", "--allow-urls", "--allow-files"]),
        (["completion", "-"], ["--help"]),
        (["generate", "--sho"], ["--show"]),
        (["generate", "--rep"], ["--repetition-penalty", "--repetition-context-size", "--report"]),
        (["chat", "--hi"], ["--history"]),
        (["generate", "--image", "pic"], []),  # the shell's own: files
    ],
    ids=lambda value: " ".join(value) or "nothing",
)
def test_bash_completes(words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    typed = " ".join(map(repr, words))
    asked = f'COMP_WORDS=(pg-mlx {typed}) COMP_CWORD={len(words)}; _pg_mlx; echo "${{COMPREPLY[*]}}"'
    program = f"{script('bash', capsys)}\n{asked}"
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected and done.stderr == ""


def test_each_shell_knows_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [flag for action in serve.parser("")._actions for flag in action.option_strings if flag[:2] == "--"]
    assert len(flags) > 20
    for shell in ("bash", "zsh"):
        line = next(line for line in script(shell, capsys).splitlines() if "serve) words=" in line)
        assert line.split('"')[1].split() == flags
    assert script("zsh", capsys).startswith("autoload -U +X bashcompinit && bashcompinit\n")
    fish = script("fish", capsys)
    assert all(f'from serve" -l {flag[2:]}\n' in fish + "\n" for flag in flags)
    assert all(f" -a {command} -d " in fish for command in COMMANDS)


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "'tcsh'" in capsys.readouterr().err
