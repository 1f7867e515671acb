"""A page for each command, written by its argparse parser."""

from __future__ import annotations

import argparse
import html
import importlib
from functools import cache

from pg_mlx.cli import COMMANDS


@cache
def pages() -> dict[str, str]:
    """The text of each page by its path on the site: commands/generate.md."""
    return {f"commands/{name}.md": page(name, about) for name, about in COMMANDS.items()}


def page(name: str, about: str) -> str:
    """What `pg-mlx NAME --help` says, as a page."""
    module = importlib.import_module(f"pg_mlx.cli.{name}")
    parser: argparse.ArgumentParser = module.parser(f"pg-mlx {name}")
    parts = [f"# pg-mlx {name}", text(parser.description or about)]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help is not argparse.SUPPRESS]
        if actions:
            rows = [f"| {spelled(action)} | {explained(parser, action)} |" for action in actions]
            title = (group.title or "options").capitalize()
            parts += [f"## {title}", text(group.description or ""), "\n".join(["| option | |", "|---|---|", *rows])]
    if parser.epilog:
        epilog = parser.epilog % {"prog": parser.prog}
        parts += ["## Examples and exit codes", f"```text\n{epilog.rstrip()}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def spelled(action: argparse.Action) -> str:
    """All names of an option with its value: `-m M`, `--model M`."""
    value = argparse.HelpFormatter("")._format_args(action, action.dest.upper())
    if action.choices is not None and action.metavar is None:  # they are listed beside it
        value = "WORD"
    names = [f"{name} {value}".rstrip() for name in action.option_strings] or [value]
    return "<br>".join(f"<code>{html.escape(name).replace('|', '&#124;')}</code>" for name in names)


def explained(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """What it does, and the words that it takes."""
    said = text(argparse.HelpFormatter(parser.prog)._expand_help(action) if action.help else "")
    choices = ", ".join(f"`{choice}`" for choice in action.choices or ())
    return "; ".join(part for part in (said, f"one of {choices}" if choices else "") if part).replace("|", "&#124;")


def text(words: str) -> str:
    """Plain words for Markdown, in which < and * mean nothing."""
    return html.escape(" ".join(words.split()), quote=False).replace("*", "&#42;").replace("_", "&#95;")
