"""pg-mlx chat: questions about a picture, one after the other."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, PgMlxError
from ..ops.watchdog import explained
from .hints import TASKS
from .line_editor import LineEditor
from .options import Parser, add_model_options, add_sampling_options, load_options, load_progress
from .writers import allow_any_text

if TYPE_CHECKING:
    from .conversation import Conversation

DESCRIPTION = """\
Ask about a picture, question after question. Each line is a prompt, as "caption en", or a command, as /detect cat.
PaliGemma answers every prompt by itself: it does not remember the ones before."""

_HISTORY = "~/.pg_mlx_history"

_TASK_STARTS = [re.sub(r"[A-Z][A-Z ;]*$", "", prompt) for prompt in TASKS.values()]
"""Beginnings of prompts, up to what a person has to fill in."""

COMMANDS = {
    "/image": ("PATH", "ask about another picture: a path or an address"),
    "/detect": ("THING ; THING", "boxes around things"),
    "/segment": ("THING ; THING", "boxes and masks"),
    "/show": ("", "show the picture with what the last answer found"),
    "/save": ("FILE", "save the last answer: .png or .jpg drawn, .json, or .txt"),
    "/help": ("", "this list"),
    "/quit": ("", "end (Ctrl-D does, too)"),
}
"""Each with its argument and what it does."""

_LIST = "\n".join(f"  {name + ' ' + argument:<24}{about}" for name, (argument, about) in COMMANDS.items())
_HELP = f"commands:\n{_LIST}\n\nprompts:\n  {' | '.join(TASKS.values())}\n"

EPILOG = f"""\
{_HELP}
Tab completes commands, task words and paths. The up arrow brings earlier lines back. Ctrl-C stops an answer.

examples:
  %(prog)s --image cat.jpg
  %(prog)s --model google/paligemma2-3b-mix-448 --image cat.jpg --show
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The options of this command."""
    p = Parser(program, DESCRIPTION, EPILOG)
    add_model_options(p)
    p.add_argument("-i", "--image", metavar="I", help="the picture to begin with: a file or an address")
    p.add_argument("--show", action="store_true", help="show the picture after each answer that found something")
    add_sampling_options(p)
    p.add_argument(
        "--history", metavar="FILE", default=_HISTORY, help=f'where lines are kept (default: {_HISTORY}; "": nowhere)'
    )
    p.add_argument("--verbose", action="store_true", help="say how long each answer took")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    """Answer until the input ends. Returns the exit code: 0, or 1 if a line of a file or pipe failed. Raises PgMlxError
    if it cannot begin."""
    args = parser(program).parse_args(argv)
    if sys.stdin is None:
        raise InputError("chat reads its prompts from stdin, which is closed")
    conversation = _begin(args)
    editor = LineEditor(completions, Path(args.history).expanduser() if args.history else None)
    if editor.terminal:
        print("/help explains, Tab completes, Ctrl-D ends", file=sys.stderr)
    allow_any_text()
    try:
        failed = _answer_lines(conversation, editor, args.debug)
    finally:
        editor.close()
    return int(failed and not editor.terminal)


def _begin(args: argparse.Namespace) -> Conversation:
    """Load the model and open the picture. Raises PgMlxError if one of them cannot be read."""
    from ..processor.notes import print_as_lines

    print_as_lines()
    from ..checkpoint.load import load_with
    from ..demo import CHECKPOINT
    from .conversation import Conversation
    from .session import NO_MODEL, sampling

    sampling(args)  # or InputError
    from ..processor.images import load_image

    image = load_image(args.image) if args.image else None  # or InputError, before a model is read
    if args.model is None:
        print(NO_MODEL, file=sys.stderr)
    with load_progress() as progress:
        model, processor = load_with(args.model or CHECKPOINT, load_options(args), progress.show)
    conversation = Conversation(args, model, processor)
    if args.image:
        conversation.open(args.image, image)
    return conversation


def _answer_lines(conversation: Conversation, editor: LineEditor, debug: bool) -> bool:
    """Until the end of the input, or /quit. What fails is one line, and the next prompt comes. Returns whether anything
    failed."""
    failed = False
    while True:
        try:
            line = editor.read(f"{conversation.name}> ")
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit ends)", file=sys.stderr)
            continue
        except EOFError:
            if editor.terminal:
                print()
            return failed
        try:
            if not _handle(conversation, line.strip()):
                return failed
        except KeyboardInterrupt:
            print("\n(stopped)", file=sys.stderr)
        except PgMlxError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
        except BrokenPipeError:
            raise
        except Exception as error:
            if debug:
                raise
            failed = True
            print(f"error: {explained(error)}", file=sys.stderr)


def _handle(conversation: Conversation, line: str) -> bool:
    """Do what a line says; False if it ends the session. Raises PgMlxError for what cannot be done."""
    if not line:
        return True
    if not line.startswith("/"):
        conversation.ask(line)
        return True
    name, _, argument = line.partition(" ")
    if name == "/quit":
        return False
    if name not in COMMANDS and (path := _dropped(line)):
        conversation.open(path)
        return True
    if name not in COMMANDS:
        raise InputError(f"no command {name}; there is: {' '.join(COMMANDS)}")
    if COMMANDS[name][0] and not argument:
        raise InputError(f"{name} needs {COMMANDS[name][0]}")
    actions: dict[str, Callable[[], None]] = {
        "/image": lambda: conversation.open(_dropped(argument) or argument),
        "/detect": lambda: conversation.ask(f"detect {argument}"),
        "/segment": lambda: conversation.ask(f"segment {argument}"),
        "/show": conversation.show,
        "/save": lambda: conversation.save(argument),
        "/help": lambda: print(_HELP, end="", file=sys.stderr),
    }
    actions[name]()
    return True


def _dropped(text: str) -> str | None:
    """The path of a file as it is, or quoted as a terminal writes one that was dropped onto it."""
    try:
        words = shlex.split(text)
    except ValueError:
        words = []
    for path in (text, words[0] if len(words) == 1 else ""):
        try:
            if path and Path(path).expanduser().is_file():
                return path
        except (OSError, RuntimeError, ValueError):
            continue
    return None


def completions(line: str) -> list[str]:
    """The lines that the beginning of one can become: commands, paths behind /image and /save, task words."""
    command, space, path = line.partition(" ")
    if space and command in ("/image", "/save"):
        return [f"{command} {found}" for found in _paths(path)]
    starts = [f"{name} " if argument else name for name, (argument, _) in COMMANDS.items()]
    return [start for start in (starts if line.startswith("/") else _TASK_STARTS) if start.startswith(line)]


def _paths(beginning: str) -> list[str]:
    folder, slash, name = beginning.rpartition("/")
    place = Path(f"{folder}{slash}" or ".").expanduser()
    found = [entry for entry in place.iterdir() if entry.name.startswith(name) and (name or entry.name[0] != ".")]
    return sorted(f"{folder}{slash}{entry.name}{'/' * entry.is_dir()}" for entry in found)
