"""Work done ahead on other threads: in order, bounded, and with its errors in the right places."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx import timeline
from pg_mlx.demo import CHECKPOINT
from pg_mlx.threads import Prefetch, Shared, run_into, start


def settle(condition) -> bool:
    """Whether it becomes true within a few seconds; other threads decide when."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(fails=st.lists(st.booleans(), max_size=30), threads=st.integers(1, 4), limit=st.integers(1, 6))
def test_outcomes_come_in_order_with_their_own_errors(fails: list[bool], threads: int, limit: int) -> None:
    def work(number: int) -> int:
        if fails[number]:
            raise ValueError(number)
        return number

    ahead = Prefetch((partial(work, number) for number in range(len(fails))), threads=threads, limit=limit)
    for number, outcome in enumerate(ahead):
        if fails[number]:
            with pytest.raises(ValueError, match=str(number)):
                outcome.result()
        else:
            assert outcome.result() == number
    assert ahead.exhausted
    ahead.close()


def test_no_more_than_the_limit_is_done_ahead() -> None:
    begun: list[int] = []
    ahead = Prefetch((partial(begun.append, number) for number in range(10_000)), threads=2, limit=5)
    assert settle(lambda: len(begun) == 5) and ahead.ready
    for _ in range(3):
        next(ahead).result()
    assert settle(lambda: len(begun) == 8)
    ahead.close()
    assert ahead.exhausted and len(begun) == 8


def test_what_has_not_begun_when_it_is_closed_never_begins() -> None:
    gate, begun = threading.Event(), list[int]()

    def work(number: int) -> None:
        begun.append(number)
        gate.wait()

    before = set(threading.enumerate())
    ahead = Prefetch((partial(work, number) for number in range(9)), threads=2, limit=4)
    assert settle(lambda: len(begun) == 2) and not ahead.ready
    ahead.close()
    gate.set()
    assert settle(lambda: set(threading.enumerate()) <= before)
    assert begun == [0, 1] and next(ahead, None) is None


def test_several_threads_share_one_call() -> None:
    calls: list[int] = []

    def slow() -> int:
        calls.append(1)
        time.sleep(0.01)
        return 7

    once = Shared(slow)
    assert [one.result() for one in [start(once) for _ in range(4)]] == [7] * 4 and calls == [1]


def test_an_interrupt_is_not_swallowed_and_leaves_nobody_waiting() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    future: Future[None] = Future()
    run_into(future, interrupted)
    assert future.done()
    with pytest.raises(KeyboardInterrupt):
        future.result()


SLOW = """
import signal, sys, time
import sentencepiece
from pg_mlx.demo import CHECKPOINT
from pg_mlx.processor import Tokenizer

def slow(*_):
    # In and out of C++ for a while: Python that ends meanwhile would abort the process.
    data, end = (CHECKPOINT / "tokenizer.model").read_bytes(), time.monotonic() + 1.5
    while time.monotonic() < end:
        sentencepiece.SentencePieceProcessor(model_proto=data)
    return original(CHECKPOINT)

original = Tokenizer.from_folder
Tokenizer.from_folder = slow
"""

ENDS = {
    "a refused model at a command": (
        2,
        "from pg_mlx.cli import command; command(['generate', '--model', sys.argv[1], '--image', sys.argv[2]])",
    ),
    "an unexpected failure at a command, debugged": (
        1,
        "import pg_mlx.checkpoint.load as load; load.hub.resolve = lambda *_: 1 / 0; "
        "from pg_mlx.cli import command; "
        "command(['generate', '--model', sys.argv[1], '--image', sys.argv[2], '--debug'])",
    ),
    "a refused model in a program": (1, "import pg_mlx; pg_mlx.load(sys.argv[1])"),
    "a thread nobody waits for": (3, "from pg_mlx.threads import start; start(slow); time.sleep(.1); sys.exit(3)"),
    "a thread ahead of a command that is interrupted": (
        130,
        "from pg_mlx import cli; from pg_mlx.cli import generate; from pg_mlx.threads import Prefetch\n"
        "def run(*_):\n Prefetch([slow]); time.sleep(.1); raise KeyboardInterrupt\n"
        "generate.run = run; cli.command(['generate'])",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_program_ends_with_its_code_while_a_thread_is_in_cpp(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    shutil.copy(CHECKPOINT / "model-00001-of-00001.safetensors", tmp_path / "model.safetensors")
    code, program = ENDS[name]
    scene = CHECKPOINT.parent / "scene.png"
    for _ in range(3):
        command = [sys.executable, "-c", SLOW + program, str(tmp_path), str(scene)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        assert "terminate called" not in done.stderr


def test_spans_are_noted_only_when_somebody_asks() -> None:
    spans: list[timeline.Span] = []
    with timeline.timed("before"):
        pass
    timeline.record(spans)
    try:
        with timeline.timed("while"):
            pass
    finally:
        timeline.record(None)
    with timeline.timed("after"):
        pass
    (span,) = spans
    assert span.name == "while" and span.stop >= span.start and span.thread == threading.get_ident()
