"""The worker as another program sees it: lines and frames in, valid messages out, and an end when it should end."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT
from helpers.service import CAT, MIXED, SCENE, WILD, alone
from helpers.worker import CLIENT, SCHEMA, WORKER, Raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pg_mlx.checkpoint.load import LoadOptions
from pg_mlx.generation import SamplingOptions
from pg_mlx.serving.error_codes import ERROR_CODES
from pg_mlx.serving.service.service import ServingError
from pg_mlx.serving.strict_json import BadJson
from pg_mlx.serving.structs import Invalid
from pg_mlx.serving.worker import schemas
from pg_mlx.serving.worker.framing import Incoming, LineTooLong, frame_lengths, line_of, parse
from pg_mlx.serving.worker.pictures import confined
from pg_mlx.serving.worker.worker import loading

FUZZED_LINES = int(os.environ.get("PG_MLX_FUZZED_LINES", "300"))
"""10000 for a thorough run."""
AT_ONCE = 25
DEFINITIONS: dict[str, dict[str, object]] = SCHEMA["$defs"]
MESSAGES = {name for name in DEFINITIONS if name.startswith(("client_", "worker_"))}

PATH = {"path": str(SCENE)}
LONG = dict(prompt="ocr", images=[PATH], max_tokens=8000, temperature=WILD.temperature, seed=WILD.seed)


@pytest.fixture(scope="module")
def worker(ops: str) -> Iterator[Raw]:
    with Raw() as running:
        yield running.greet()


# --- conversations ------------------------------------------------------------------------------------


def test_a_conversation_from_hello_to_bye():
    with Raw() as raw:
        assert raw.ask("stats")["code"] == "hello_first"
        assert raw.ask("hello", protocols=[2, 3])["code"] == "unsupported_protocol"
        hello = raw.ask("hello", protocols=[1, 2], id="a")
        assert hello["protocol"] == 1 and set(hello["capabilities"]["pictures"]) == {"path", "base64", "bytes"}
        commands = hello["capabilities"]["commands"]
        assert {f"client_{name}" for name in commands} == {name for name in MESSAGES if name[:7] == "client_"}
        assert raw.ask("generate", prompt="ocr", images=[PATH])["code"] == "not_loaded"
        assert raw.ask("load", model="/nothere/at/all")["code"] == "bad_model"
        loading = raw.say("load")
        assert raw.until(loading, "progress")["stage"] == "fetch"
        assert raw.until(loading, "loaded")["model"]["image_size"] == 112
        stats = raw.ask("stats")
        assert stats["state"] == "ready" and stats["model"]["model_type"] == "gemma2"
        assert raw.ask("unload")["type"] == "unloaded"
        assert raw.ask("stats")["model"] is None
        farewell = raw.say("shutdown")
        assert raw.until(farewell, "bye") and raw.ended() == 0
        assert b"Traceback" not in raw.stderr


def test_answers_are_those_given_alone_whatever_way_the_pictures_come(worker: Raw):
    asked = {}
    for number, (prompt, images, options, logprobs) in enumerate(MIXED):
        described, frames = [], []
        for image in images:
            data = image.read_bytes()
            way = (number + len(described)) % 3
            ways = {"path": str(image)}, {"base64": base64.b64encode(data).decode()}, {"bytes": len(data)}
            described.append(ways[way])
            frames += [data] if way == 2 else []
        given = {name: value for name, value in vars(options).items() if value not in (None, ())}
        message = dict(prompt=prompt, images=described, logprobs=logprobs, **given)
        assert CLIENT.is_valid({"type": "generate", "id": 0, **message})
        asked[worker.say("generate", *frames, **message)] = (prompt, images, options, logprobs)
    texts, regions = dict.fromkeys(asked, ""), {name: [] for name in asked}
    while asked:
        message = worker.next()
        name = message["id"]
        if message["type"] == "text":
            texts[name] += message["text"]
        elif message["type"] == "region":
            regions[name].append(message["region"])
        else:
            expected = alone(*asked.pop(name))
            assert message["text"] == texts[name] == expected.text and message["token_ids"] == expected.token_ids
            assert message["regions"] == regions[name]
            assert [region["label"] for region in regions[name]] == [region.label for region in expected.regions]
            for region in expected.regions:
                assert (message["width"], message["height"]) == region.image_size
            assert [r["mask"] is None for r in message["regions"]] == [r.mask is None for r in expected.regions]


def test_without_streaming_there_is_one_message(worker: Raw):
    asked = worker.say("generate", prompt="segment red circle", images=[PATH], stream=False)
    message = worker.next()
    assert message["id"] == asked and message["type"] == "done" and message["regions"]


def test_cancelling_deadlines_and_ids(worker: Raw):
    running = worker.say("generate", **LONG, id="long")
    worker.until(running, "text")
    assert worker.ask("generate", id="long", prompt="", images=[PATH])["code"] == "duplicate_id"
    assert worker.ask("cancel", request="another")["found"] is False
    # An id that was refused as a duplicate did not close the request that has it.
    assert worker.say("cancel", request="long", id=7) == 7
    seen = [worker.until(name, "cancelled", "error") for name in (7, "long")]
    assert seen[0]["found"] is True and seen[1]["code"] == "cancelled"
    assert worker.ask("generate", **LONG, deadline_s=0.2)["code"] == "deadline"
    assert worker.ask("generate", prompt="caption en", images=[PATH], id="long")["type"] == "done"


def test_bad_requests_are_told_apart(worker: Raw):
    for frames, images, code in [
        ([], [], "bad_request"),
        ([], [{"base64": "*"}], "bad_image"),
        ([], [{"base64": "QUFB"}], "bad_image"),
        ([], [{"path": "/nothere"}], "bad_image"),
        ([], [{"path": "http://127.0.0.1/a.png"}], "bad_image"),
        ([], [{"path": "-"}], "bad_image"),
        ([], [PATH] * 17, "too_large"),
        ([b"no picture"], [{"bytes": 10}], "bad_image"),
        ([b"no ", b"pic"], [{"bytes": 3}, {"x": 1}, {"bytes": 3}], "bad_request"),
        ([b"1"] * 17, [{"bytes": 1}] * 17, "too_large"),
    ]:
        assert worker.ask("generate", *frames, prompt="ocr", images=images)["code"] == code
    assert worker.ask("generate", prompt="ocr", images=[PATH], top_p=2)["code"] == "bad_request"
    assert worker.ask("generate", prompt="ocr", images=[PATH], constrian=True)["code"] == "bad_request"
    assert worker.ask("generate", prompt="\ud800", images=[PATH])["code"] == "bad_request"
    assert worker.ask("generate", prompt="o" * 40_000, images=[PATH])["code"] == "too_large"


HIDDEN = b'\n{"type":"shutdown","id":"hidden"}\n'


@pytest.mark.parametrize("length", [float, lambda size: f"{size}e0", lambda size: f"{size / 10}e1"])
def test_a_length_is_the_same_however_it_is_written(worker: Raw, length: Any):
    """Else the worker would read the picture as lines, and a picture could hold any."""
    for picture, kind in ((SCENE.read_bytes(), "done"), (HIDDEN, "error")):
        image = f'{{"bytes": {length(len(picture))}}}'
        text = f'{{"type": "generate", "id": "x", "prompt": "ocr", "max_tokens": 3.0, "images": [{image}]}}'
        message = parse(text.encode())
        assert frame_lengths(message) == [schemas.read(message).images[0].bytes] == [len(picture)]
        worker.write(text.encode() + b"\n" + picture)
        assert worker.until("x", "done", "error")["type"] == kind
    assert worker.ask("stats")["state"] == "ready"


@pytest.mark.ops("cpu", reason="float copies are for the CPU")
def test_options_of_loading_come_from_the_message_and_else_from_the_flags():
    flags = LoadOptions(dtype="float32", max_memory="9GB", layers_at_once=2)
    message = {"type": "load", "id": 1}
    assert loading(schemas.read(message), flags) == flags
    assert loading(schemas.read({**message, "layers_at_once": 3}), flags) == replace(flags, layers_at_once=3)
    options = {
        "dtype": "float32", "adapter_path": ["a"], "revision": "r", "max_memory": "8GB", "memory": 10**9,
        "layers_at_once": 1, "mask_decoder": "m", "tokenizer": "t",
    }  # fmt: skip
    assert loading(schemas.read({**message, **options, "sliding_window": True}), flags) == LoadOptions(
        **options, use_sliding_window=True
    )
    assert set(schemas.ClientLoad.__struct_fields__) == {*options, "id", "model", "sliding_window"}


def test_a_load_message_overrides_the_flags():
    with Raw("--layers-at-once", "3") as raw:
        raw.greet(load=False)
        assert raw.ask("load", layers_at_once=0)["code"] == "bad_request"
        assert raw.ask("load", memory="lots")["code"] == "bad_model"
        assert raw.ask("load", layers_at_once=1, sliding_window=False, dtype="float16")["model"]["dtype"] == "float16"
        assert raw.ask("generate", prompt="caption en", images=[PATH])["type"] == "done"


def test_a_line_without_end_is_refused_and_passed_over(worker: Raw):
    worker.write(b'{"type":"stats","id":"' + b"x" * ((64 << 20) + 10) + b'"}\n')
    assert worker.next()["code"] == "too_large"
    assert worker.ask("stats")["type"] == "stats"


# --- fuzzing ------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
IMAGES = [PATH, {"path": str(CAT)}, {"path": "x"}, {"base64": "QUFB"}, {}, {"path": 1}]
FIELDS = {
    "prompt": st.sampled_from(["ocr", "", "detect cat ; dog"]) | st.text(max_size=9),
    "images": st.lists(st.sampled_from(IMAGES), max_size=2),
    "max_tokens": st.integers(-1, 4),
    "temperature": st.floats(-1, 5),
    "top_p": st.floats(-1, 2),
    "top_k": st.integers(-1, 9),
    "min_p": st.floats(-1, 2),
    "seed": st.integers(-1, 2**64),
    "logprobs": st.booleans() | st.integers(-1, 21),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=3),
    "repetition_penalty": st.floats(-1, 3),
    "repetition_context_size": st.integers(-1, 9),
    "no_repeat_ngram_size": st.integers(-1, 4),
    "constrain": st.booleans(),
    "max_regions": st.integers(-1, 3),
    "deadline_s": st.sampled_from([-1, 0, 1e-9, 0.01, 5, 1e300]),
    "stream": st.booleans(),
    "protocols": st.lists(st.integers(0, 3), max_size=3),
    "request": st.integers(0, 9) | st.text(max_size=3),
    "dtype": st.sampled_from(["float32", "int4"]),
}  # fmt: skip
ids = st.integers(0, 9) | st.text(max_size=3) | st.integers(-5, 2**60) | st.none()


@st.composite
def messages(draw: st.DrawFn) -> dict[str, object]:
    """Near to valid ones, some quite."""
    kind = draw(st.sampled_from([*sorted(name[7:] for name in MESSAGES if name.startswith("client_")), "x"]))
    wanted = DEFINITIONS.get(f"client_{kind}", {"properties": {}, "required": []})
    names = [name for name in wanted["properties"] if name in FIELDS] or ["seed"]
    chosen = {name for name in wanted["required"] if name in FIELDS}
    chosen |= set(draw(st.lists(st.sampled_from(names), max_size=4)))
    message: dict[str, object] = {"type": kind, "id": draw(ids)}
    message |= {name: draw(FIELDS[name]) for name in sorted(chosen)}
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        message[draw(st.sampled_from([*message, "other"]))] = draw(json_values)
    return message


def valid(message: object) -> bool:
    """Whether the worker accepts it, as a line."""
    try:
        schemas.read(parse(line_of(message)))  # type: ignore[arg-type]
    except (BadJson, Invalid):
        return False
    return True


def harmless(message: object) -> bool:
    """It does not end what the others are tried on, and does not answer for minutes."""
    if not isinstance(message, dict) or not valid(message):
        return True
    if message["type"] == "generate":
        return message.get("max_tokens", 256) <= 4
    return message["type"] not in ("load", "unload", "shutdown")


def framed(message: object) -> bool:
    return isinstance(message, dict) and "bytes" in json.dumps(message)


tried = (messages() | json_values).filter(harmless).filter(lambda message: not framed(message))
json_lines = tried.map(lambda message: json.dumps(message).encode())
raw_lines = st.binary(max_size=60).filter(lambda line: b"\n" not in line)


@st.composite
def broken_lines(draw: st.DrawFn) -> bytes:
    """A valid line with some of it lost, or with bytes put in."""
    line = draw(json_lines)
    place = draw(st.integers(0, len(line)))
    if draw(st.booleans()):
        return line[:place] + line[place + draw(st.integers(1, 9)) :]
    return line[:place] + draw(raw_lines) + line[place:]


def still_harmless(line: bytes) -> bool:
    try:
        message = parse(line)
    except BadJson:
        return True
    return harmless(message) and not framed(message)


lines = json_lines | raw_lines | broken_lines().filter(still_harmless)


@settings(
    max_examples=-(-FUZZED_LINES // AT_ONCE),
    deadline=None,
    derandomize=FUZZED_LINES <= 300,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(sent=st.lists(lines, min_size=AT_ONCE, max_size=AT_ONCE), last=st.integers(10**6, 2**53))
def test_no_line_breaks_the_worker(worker: Raw, sent: list[bytes], last: int):
    """Each line gets one last message, and whatever is said is valid, which `next` checks."""
    worker.write(b"".join(line + b"\n" for line in sent))
    worker.say("stats", id=f"{last}")
    finals = 0
    expected = len(sent)
    stats = None
    while stats is None or finals < expected:
        message = worker.next()
        if message["type"] == "stats" and message["id"] == f"{last}":
            stats = message
        elif message["type"] not in ("text", "region", "progress"):
            finals += 1
        assert "Traceback" not in json.dumps(message)
    assert stats["state"] == "ready"
    assert b"Traceback" not in worker.stderr and b"failed:" not in worker.stderr


@settings(max_examples=150, deadline=None, derandomize=True)
@given(message=messages() | json_values)
def test_what_the_worker_accepts_is_what_the_schema_says(message: object):
    assert valid(message) == CLIENT.is_valid(message)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    parts=st.lists(st.tuples(st.booleans(), st.binary(max_size=30)), max_size=8),
    cuts=st.lists(st.integers(1, 40), max_size=20),
    tail=st.binary(max_size=5).filter(lambda tail: b"\n" not in tail),
)
def test_lines_and_frames_are_read_as_they_were_written(parts: list[tuple[bool, bytes]], cuts: list[int], tail: bytes):
    data = b"".join(part if frame else part.replace(b"\n", b"") + b"\n" for frame, part in parts) + tail
    read, write = os.pipe()
    try:
        for cut in cuts:
            os.write(write, data[:cut])
            data = data[cut:]
        os.write(write, data)
        os.close(write)
        incoming = Incoming(read, limit=20)
        for frame, part in parts:
            if frame:
                assert incoming.frame(len(part)) == part
            elif len(line := part.replace(b"\n", b"")) > 20:
                with pytest.raises(LineTooLong):
                    incoming.line()
            else:
                assert incoming.line() == line + b"\n"
        assert incoming.line() is None and not incoming.skip(len(tail) + 1)
    finally:
        os.close(read)


HOSTILE = [b"NaN", b"[1]", b'{"a":1e999}', b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b"\xff{}"]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_json_is_refused(line: bytes):
    with pytest.raises(BadJson):
        parse(line)


# --- ends ---------------------------------------------------------------------------------------------

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
sys.exit(main(["worker"]))
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
    """The last test on this worker."""
    asked = worker.say("generate", prompt="caption en", images=[PATH])
    refused = worker.say("generate", prompt="ocr", images=[{"bytes": 1 << 50}])
    assert worker.until(refused, "error")["code"] == "too_large"  # before a byte of it has come
    worker.process.stdin.close()
    assert worker.until(asked, "done") and worker.ended() == 0


PARENT = f"""
import json, os, subprocess, sys, time
read, write = os.pipe()
keeper = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, pass_fds=[write])  # holds the worker's stdin open
worker = subprocess.Popen([{sys.executable!r}, "-m", "pg_mlx", "worker"], stdin=read)
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


# --- paths and papers ---------------------------------------------------------------------------------


def test_paths_are_confined(tmp_path: Path):
    inside, outside = tmp_path / "inside", tmp_path / "inside too"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.png").touch()
    (inside / "link.png").symlink_to(outside / "a.png")
    folders = [inside.resolve()]
    assert confined(str(inside / "x" / ".." / "a.png"), folders) == inside.resolve() / "a.png"
    for path in (outside / "a.png", inside / ".." / "inside too" / "a.png", inside / "link.png", "/etc/passwd", "a\0b"):
        with pytest.raises(ServingError):
            confined(str(path), folders)
    assert confined(str(outside / "a.png"), None) == outside.resolve() / "a.png"


def test_the_documentation_tells_every_message_and_code_in_valid_examples():
    text = (ROOT / "docs" / "protocol.md").read_text()
    told = set()
    for line in text.splitlines():
        side, _, rest = line.strip().partition(" ")
        if side in ("→", "←") and rest.startswith("{"):
            message = json.loads(rest)
            name = "client" if side == "→" else "worker"
            (CLIENT if side == "→" else WORKER).validate(message)
            told.add(f"{name}_{message['type']}")
    assert told == MESSAGES
    assert all(f"`{code}` | {meaning}" in text for code, meaning in ERROR_CODES.items())
