"""A supervised worker: it may be killed at any time, and costs the requests in flight and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.service import SCENE, WILD, alone
from helpers.worker import Raw

from pg_mlx.generation import SamplingOptions

PATH = {"path": str(SCENE)}
SHORT = dict(prompt="caption en", images=[PATH])
LONG = dict(prompt="ocr", images=[PATH], max_tokens=8000, temperature=WILD.temperature, seed=WILD.seed)


@pytest.fixture
def supervised() -> Iterator[Raw]:
    with Raw("--supervise") as raw:
        yield raw.greet()


def worker_of(raw: Raw, other_than: int = 0) -> int:
    """The process id of the worker behind the supervisor."""
    for _ in range(600):
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, parent = int(status.parent.name), int(status.read_text().rpartition(")")[2].split()[1])
                if parent == raw.process.pid and pid != other_than:
                    return pid
        time.sleep(0.1)
    raise AssertionError("there is no worker")


def gone(pid: int) -> bool:
    """Whether it ended. In a container, nobody may collect an orphan, which then stays as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc"),
    pytest.mark.ops("cpu", reason="a supervisor computes nothing"),
]


def test_a_killed_worker_costs_the_requests_in_flight_only(supervised: Raw):
    expected = alone("caption en", (SCENE,), SamplingOptions()).text
    asked = [supervised.say("generate", **LONG) for _ in range(3)]
    for name in asked:
        supervised.until(name, "text")
    killed = worker_of(supervised)
    os.kill(killed, signal.SIGKILL)
    errors = [supervised.next() for _ in asked]
    while errors[0]["type"] == "text":  # said before it died
        errors = [*errors[1:], supervised.next()]
    assert {error["id"] for error in errors} == set(asked)
    assert {error["code"] for error in errors} == {"worker_died"}
    began = time.monotonic()
    assert supervised.ask("generate", **SHORT)["text"] == expected  # no hello, no load
    print(f"answered {time.monotonic() - began:.2f} s after the error")
    assert worker_of(supervised) != killed
    assert supervised.ask("stats")["answered"] == 1
    idle = worker_of(supervised)
    os.kill(idle, signal.SIGKILL)
    worker_of(supervised, other_than=idle)  # nobody hears of it
    assert supervised.ask("generate", **SHORT)["text"] == expected
    farewell = supervised.say("shutdown")
    assert supervised.until(farewell, "bye") and supervised.ended() == 0
    assert b"starting another" in supervised.stderr and b"Traceback" not in supervised.stderr


def test_every_request_gets_one_last_message_while_workers_are_killed(supervised: Raw):
    """Lines with frames, wrong ones, ids used twice; a worker that dies among them."""
    picture = SCENE.read_bytes()
    framed = dict(prompt="ocr", images=[{"bytes": len(picture)}], max_tokens=4, stream=False)
    expected = dict[object, int]()
    for turn in range(4):
        if turn:
            os.kill(worker_of(supervised), signal.SIGKILL)
        for _ in range(5):
            names = [supervised.say("generate", picture, **framed), supervised.say("generate", id="twice", **SHORT)]
            names += [supervised.say("generate", b"123", images=[{"bytes": 3}]), supervised.say("nonsense")]
            supervised.write(b"no json\n")
            for name in (*names, None):
                expected[name] = expected.get(name, 0) + 1
    seen = dict.fromkeys(expected, 0)
    while seen != expected:
        message = supervised.next()
        if message["type"] in ("done", "error"):
            seen[message["id"]] += 1
            assert message.get("code") in (None, "worker_died", "duplicate_id", "bad_request", "bad_json")
    assert supervised.ask("generate", picture, **framed)["type"] == "done"


def test_what_was_unloaded_is_not_loaded_again(supervised: Raw):
    assert supervised.ask("unload")["type"] == "unloaded"
    killed = worker_of(supervised)
    os.kill(killed, signal.SIGKILL)
    worker_of(supervised, other_than=killed)
    assert supervised.ask("generate", **SHORT)["code"] == "not_loaded"


def test_a_frame_goes_on_to_nobody_when_the_worker_dies_within_it(supervised: Raw):
    line = {"type": "generate", "id": 1, "prompt": "ocr", "images": [{"bytes": 5_000_000}]}
    supervised.write(json.dumps(line).encode() + b"\n" + b"{" * 2_500_000)
    time.sleep(0.5)
    os.kill(worker_of(supervised), signal.SIGKILL)
    assert supervised.until(1, "error")["code"] == "worker_died"
    supervised.write(b"}\n" * 1_250_000)
    assert supervised.ask("generate", **SHORT)["type"] == "done"


@pytest.mark.parametrize("end", ["stdin", signal.SIGTERM, signal.SIGINT])
def test_ends_as_a_worker_does(supervised: Raw, end: object):
    asked = supervised.say("generate", **SHORT)
    supervised.until(asked, "text")
    if isinstance(end, signal.Signals):
        supervised.process.send_signal(end)
    else:
        supervised.process.stdin.close()
    assert supervised.until(asked, "done")["finish_reason"] == "stop" and supervised.ended() == 0


def test_a_killed_supervisor_takes_its_worker_with_it(supervised: Raw):
    supervised.until(supervised.say("generate", **LONG), "text")
    worker = worker_of(supervised)
    supervised.process.kill()
    began = time.monotonic()
    while not gone(worker):
        assert time.monotonic() - began < 20.0  # .5 s when the machine is idle
        time.sleep(0.02)


DYING = """
import sys
from pg_mlx.serving.worker.supervisor import Supervisor
from pg_mlx.serving.worker.processes import guarded_pipes
import os
sys.exit(Supervisor(*guarded_pipes(), os.getppid(), [sys.executable, "-c", {program!r}]).run())
"""


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [
        ("import os; os._exit(3)", 1, b"the worker ended with 3; giving up"),
        ("print('hello', flush=True)", 1, b"does not keep to the protocol"),
        ("print('{}', flush=True)", 1, b"does not keep to the protocol"),
        ('print(\'{"type": "done", "id": []}\', flush=True)', 1, b"does not keep to the protocol"),
        ("raise SystemExit(2)", 2, b""),
    ],
)
def test_gives_up_on_a_worker_that_never_lives(program: str, code: int, words: bytes):
    with Raw(code=DYING.format(program=program)) as raw:
        assert raw.ended() == code
        assert words in raw.stderr and b"Traceback" not in raw.stderr


ONCE = """
import json, os, sys
from pathlib import Path
for answer in "hello", "loaded":
    line = json.loads(sys.stdin.readline())
    if Path({mark!r}).exists():
        os._exit(4)
    print(json.dumps({{"type": answer, "id": line["id"]}}), flush=True)
Path({mark!r}).touch()
"""


def test_gives_up_when_what_was_loaded_cannot_be_loaded_again_however_long_it_takes(tmp_path: Path):
    program = ONCE.format(mark=str(tmp_path / "mark"))
    code = "import pg_mlx.serving.worker.supervisor as s; s.QUICK_S = 0" + DYING.format(program=program)
    with Raw(code=code) as raw:
        raw.say("hello", id=1, protocols=[1])
        raw.say("load", id=2)
        assert [raw.messages.get(timeout=60)["id"] for _ in range(2)] == [1, 2]
        assert raw.ended() == 1 and b"ended with 4; giving up" in raw.stderr


def test_a_supervisor_loads_no_mlx():
    program = "import pg_mlx.cli.worker, pg_mlx.serving.worker.supervisor, sys; sys.exit('mlx' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program]) == 0
