"""pg-mlx completion: a script with which a shell completes commands and options."""

from __future__ import annotations

import argparse
import importlib

from . import COMMANDS
from .options import Parser

DESCRIPTION = "Print a script with which your shell completes commands and options."

EPILOG = """\
examples:
  source <(%(prog)s bash)                  in ~/.bashrc
  source <(%(prog)s zsh)                   in ~/.zshrc, after compinit
  %(prog)s fish | source                   in ~/.config/fish/config.fish
"""

_BASH = """\
_pg_mlx() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  [ "$COMP_CWORD" -eq 1 ] && words="{commands}"
  if [ "$COMP_CWORD" -eq 1 ] || [ "${{word:0:1}}" = - ]; then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
  fi
}}
complete -o default -F _pg_mlx pg-mlx
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The options of this command."""
    p = Parser(program, DESCRIPTION, EPILOG)
    p.add_argument("shell", choices=("bash", "zsh", "fish"))
    return p


def run(argv: list[str], program: str) -> int:
    """Print the script. Returns the exit code."""
    shell = parser(program).parse_args(argv).shell
    options = {command: _options(command) for command in COMMANDS}
    if shell == "fish":
        print(_fish(options))
        return 0
    if shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    cases = "\n".join(f'    {command}) words="{" ".join(words)}" ;;' for command, words in options.items())
    print(_BASH.format(cases=cases, commands=" ".join(COMMANDS)), end="")
    return 0


def _options(command: str) -> list[str]:
    """The long options of a command, and words that it takes in their place."""
    parser = importlib.import_module(f".{command}", __package__).parser(command)
    words = list[str]()
    for action in parser._actions:
        words += [option for option in action.option_strings if option.startswith("--")]
        words += [] if action.option_strings else list(action.choices or ())
    return words


def _fish(options: dict[str, list[str]]) -> str:
    lines = [
        f'complete -c pg-mlx -n __fish_use_subcommand -f -a {command} -d "{about}"'
        for command, about in COMMANDS.items()
    ]
    for command, words in options.items():
        seen = f'complete -c pg-mlx -n "__fish_seen_subcommand_from {command}"'
        lines += [f"{seen} -l {word[2:]}" if word.startswith("--") else f"{seen} -f -a {word}" for word in words]
    return "\n".join(lines)
