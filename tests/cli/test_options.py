"""The options that load a model are the same in every command that does, and mean the same."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
from helpers.models import one_line_error
from helpers.worker import Raw

from pg_mlx.checkpoint.load import LoadOptions
from pg_mlx.cli import bench, doctor, generate, serve, worker
from pg_mlx.cli.options import add_model_options, bounded, load_options
from pg_mlx.limits import MAX_BATCH_SIZE, MAX_PIXELS
from pg_mlx.ops import device

pytestmark = pytest.mark.ops("cpu", reason="it tries options, not what is computed")

COMMANDS: dict[str, Callable[[str], argparse.ArgumentParser]] = {
    module.__name__.rpartition(".")[2]: module.parser for module in (bench, doctor, generate, serve, worker)
}
FLAGS = (
    *("-m", "--model", "--revision", "--tokenizer", "--adapter-path", "--dtype", "--max-memory", "--memory"),
    *("--layers-at-once", "--sliding-window", "--mask-decoder"),
)
GIVEN = [
    *("--model", "M", "--revision", "R", "--tokenizer", "T", "--adapter-path", "A", "--adapter-path", "B"),
    *("--dtype", "float32", "--max-memory", "6GB", "--memory", "5GiB", "--layers-at-once", "3", "--sliding-window"),
    *("--mask-decoder", "D"),
]


def declared(parser: argparse.ArgumentParser) -> dict[str, tuple[Any, ...]]:
    """What there is to know of each flag."""
    return {
        flag: (action.help, action.default, action.choices, action.metavar, type(action), action.dest)
        for action in parser._actions
        for flag in action.option_strings
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_declares_them_alike(command: str) -> None:
    alone = argparse.ArgumentParser(add_help=False)
    add_model_options(alone)
    expected = declared(alone)
    assert set(expected) == set(FLAGS)
    found = declared(COMMANDS[command]("pg-mlx"))
    assert {flag: found.get(flag) for flag in expected} == expected


@pytest.fixture
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """--memory is refused on a GPU."""
    monkeypatch.setattr(device, "gpu_ops", lambda: False)


@pytest.mark.usefixtures("on_the_cpu")
@pytest.mark.parametrize("command", COMMANDS)
def test_they_mean_the_same(command: str) -> None:
    args = COMMANDS[command]("pg-mlx").parse_args(GIVEN)
    assert args.model == "M"
    assert load_options(args) == LoadOptions(
        dtype="float32",
        adapter_path=["A", "B"],
        revision="R",
        tokenizer="T",
        max_memory=6 * 10**9,
        memory=5 << 30,
        layers_at_once=3,
        use_sliding_window=True,
        mask_decoder="D",
    )
    assert load_options(COMMANDS[command]("pg-mlx").parse_args([])) == LoadOptions()


@pytest.mark.usefixtures("on_the_cpu")
def test_nothing_that_loads_is_left_out() -> None:
    """But for keep_quantized, which is for measuring and testing."""
    args = COMMANDS["doctor"]("pg-mlx").parse_args(GIVEN)
    options, default = load_options(args), LoadOptions()
    unset = [f.name for f in fields(LoadOptions) if getattr(options, f.name) == getattr(default, f.name)]
    assert unset == ["keep_quantized", "team"]  # no options of a command


WRONG = [
    (["--memory", "much"], "--memory: 'much' is not a size of memory"),
    (["--max-memory", "-1"], "--max-memory: '-1' is not a size"),
    (["--layers-at-once", "0"], "--layers-at-once: 0 is not from 1 to 1000"),
    (["--layers-at-once", "1.5"], "--layers-at-once: '1.5' is not a whole number"),
    (["--dtype", "int8"], "--dtype: invalid choice"),
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "arguments, words", WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_wrong_ones_are_one_line(command: str, arguments: list[str], words: str) -> None:
    with one_line_error(words):
        COMMANDS[command]("pg-mlx").parse_args([arguments[0], arguments[1]])


BOUNDS = [
    ("generate", "--batch-size", str(MAX_BATCH_SIZE), str(MAX_BATCH_SIZE + 1)),
    ("serve", "--batch-size", str(MAX_BATCH_SIZE), "0"),
    ("worker", "--batch-size", "1", str(MAX_BATCH_SIZE + 1)),
    ("worker", "--queue", "100000", "100001"),
    ("serve", "--max-pixels", str(MAX_PIXELS), str(MAX_PIXELS + 1)),
    ("serve", "--port", "65535", "65536"),
    ("serve", "--timeout", "0.001", "nan"),
    ("serve", "--drain", "0", "-0.5"),
    ("bench", "--repeats", "10000", "0"),
    ("bench", "--rows", "1,10000", "1,0"),
]


@pytest.mark.parametrize("command, flag, good, bad", BOUNDS)
def test_numbers_have_bounds(command: str, flag: str, good: str, bad: str) -> None:
    COMMANDS[command]("pg-mlx").parse_args([flag, good])
    with one_line_error(flag, "is not from"):
        COMMANDS[command]("pg-mlx").parse_args([f"{flag}={bad}"])


@pytest.mark.parametrize("text", ["", "x", "1e3", "1.0", "0x10", "inf"])
def test_whole_numbers_are_whole(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number"):
        bounded(0, 10)(text)


def test_flags_of_a_worker_are_defaults_of_its_load_messages() -> None:
    with Raw("--dtype", "bfloat16", "--tokenizer", "nothere.model") as running:
        running.greet(load=False)
        refused = running.ask("load")
        assert refused["code"] == "bad_model" and "nothere.model" in refused["message"]
    with Raw("--dtype", "bfloat16") as running:
        running.greet(load=False)
        assert running.ask("load")["model"]["dtype"] == "bfloat16"
        assert running.ask("load", dtype="float32")["model"]["dtype"] == "float32"
        assert running.ask("load", model="nothere")["code"] == "bad_model"
    with Raw("--model", "nothere") as running:
        running.greet(load=False)
        assert "nothere" in running.ask("load")["message"]
