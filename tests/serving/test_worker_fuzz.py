"""Lines made at random, near to valid ones or far from them, do not break the worker."""

from __future__ import annotations

import json
import os

import pytest
from helpers.service import CAT
from helpers.worker import CLIENT, MESSAGES, PATH, SCHEMA, Raw
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pg_mlx.serving.strict_json import BadJson
from pg_mlx.serving.structs import Invalid
from pg_mlx.serving.worker import schemas
from pg_mlx.serving.worker.framing import line_of, parse

FUZZED_LINES = int(os.environ.get("PG_MLX_FUZZED_LINES", "300"))
"""10000 for a thorough run."""

AT_ONCE = 25
DEFINITIONS: dict[str, dict[str, object]] = SCHEMA["$defs"]

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


HOSTILE = [b"NaN", b"[1]", b'{"a":1e999}', b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b"\xff{}"]


@pytest.mark.parametrize("line", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_json_is_refused(line: bytes):
    with pytest.raises(BadJson):
        parse(line)
