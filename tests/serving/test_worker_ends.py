"""The worker ends when it should: with its stdin, at a signal, with its parent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

from helpers.service import SCENE, alone
from helpers.worker import LONG, PATH, Raw

from pg_mlx.generation import SamplingOptions

NOISY = """
import os, sys
from pg_mlx.cli import main
from pg_mlx.serving.service.service import Service
submit = Service.submit
def noisy(*arguments):
    print("noise", flush=True)
    os.write(1, b"noise")
    os.system("echo noise")
    sys.stdout.buffer.write(b"noise")
    assert sys.stdin.read() == ""
    return submit(*arguments)
Service.submit = noisy
sys.exit(main(["worker", "--dtype", "float32"]))
"""


def test_what_libraries_print_does_not_reach_stdout_and_sigterm_drains():
    with Raw(code=NOISY) as raw:
        raw.greet()
        asked = raw.say("generate", prompt="caption en", images=[PATH])
        raw.until(asked, "text")
        raw.process.send_signal(signal.SIGTERM)
        done = raw.until(asked, "done")
        assert done["text"] == alone("caption en", (SCENE,), SamplingOptions()).text
        assert raw.ended() == 0 and b"noise" in raw.stderr


def test_the_end_of_stdin_drains_and_a_frame_that_never_comes_is_not_waited_for(worker: Raw):
    """The only test on this worker."""
    asked = worker.say("generate", prompt="caption en", images=[PATH])
    refused = worker.say("generate", prompt="ocr", images=[{"bytes": 1 << 50}])
    assert worker.until(refused, "error")["code"] == "too_large"  # before a byte of it has come
    worker.process.stdin.close()
    assert worker.until(asked, "done") and worker.ended() == 0


PARENT = f"""
import json, os, subprocess, sys, time
read, write = os.pipe()
keeper = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, pass_fds=[write])  # holds the worker's stdin open
worker = subprocess.Popen([{sys.executable!r}, "-m", "pg_mlx", "worker", "--dtype", "float32"], stdin=read)
for message in {{"type": "hello", "protocols": [1]}}, {{"type": "load"}}, {{"type": "generate", **{LONG!r}}}:
    os.write(write, json.dumps({{"id": 1, **message}}).encode() + b"\\n")
    if message["type"] != "generate":
        sys.stdin.readline()
time.sleep(60)
"""

WITHIN_S = 2.0
"""What docs/protocol.md promises."""


def test_the_worker_ends_with_its_parent_while_it_answers():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    try:
        for kind in ("hello", "loaded", "text"):  # from the worker, whose stdout is this pipe
            while json.loads(parent.stdout.readline())["type"] != kind:
                pass
            parent.stdin.write(b"\n")
            parent.stdin.flush()
        parent.kill()
        began = time.monotonic()
        assert b'"done"' not in parent.stdout.read()  # until nobody holds it any more; the keeper goes on for longer
        seconds = time.monotonic() - began
        print(f"the worker ended {seconds:.2f} s after its parent was killed")
        assert seconds < WITHIN_S
    finally:
        parent.kill()
        parent.wait()
