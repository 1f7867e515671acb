"""Lines and frames on the worker's stdin: no frame is ever read as lines."""

from __future__ import annotations

import os
from typing import Any

import pytest
from helpers.service import SCENE
from helpers.worker import PATH, Raw
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx.serving.worker import schemas
from pg_mlx.serving.worker.framing import Incoming, LineTooLong, frame_lengths, parse

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


@pytest.mark.parametrize("length", [2**53 + 1, 2**60, 2**64 - 1, 10**30])
def test_a_frame_that_is_longer_than_any_is_never_read_as_lines(length: int):
    """The rest of stdin is that frame: it gets one error, and what is in it gets none."""
    with Raw() as raw:
        raw.greet(load=False)
        asked = raw.say("generate", HIDDEN * 3, prompt="ocr", images=[{"bytes": length}])
        raw.process.stdin.close()
        message = raw.next()
        assert message["id"] == asked and message["code"] == "too_large"
        assert raw.ended() == 0


@pytest.mark.parametrize("sent", [0, 1, len(HIDDEN), 2 * len(HIDDEN) - 1])
def test_a_frame_that_stdin_ends_gets_one_error(sent: int):
    with Raw() as raw:
        raw.greet(load=False)
        images = [{"bytes": len(HIDDEN)}, {"bytes": len(HIDDEN)}]
        asked = raw.say("generate", (HIDDEN * 2)[:sent], prompt="ocr", images=images)
        raw.process.stdin.close()
        message = raw.next()
        assert message["id"] == asked and message["code"] == "bad_request"
        assert message["message"] == f"stdin ended in a frame of {len(HIDDEN)} bytes"
        assert raw.ended() == 0


def test_an_empty_frame_is_no_picture_and_the_next_line_is_read(worker: Raw):
    for images in [{"bytes": 0}], [{"bytes": 0}, {"bytes": 0.0}], [PATH, {"bytes": 0}]:
        assert worker.ask("generate", prompt="ocr", images=images)["code"] == "bad_image"
    assert worker.ask("stats")["state"] == "ready"


@pytest.mark.parametrize("value", [-1, 0.5, -0.5, -(10**30), "9", True, None, [], {}])
def test_what_is_no_length_announces_no_frame_and_gets_one_error(worker: Raw, value: Any):
    assert worker.ask("generate", prompt="ocr", images=[{"bytes": value}])["code"] == "bad_request"
    assert worker.ask("generate", HIDDEN, prompt="ocr", images=[{"bytes": value}, {"bytes": len(HIDDEN)}])["code"] == (
        "bad_request"
    )
    assert worker.ask("stats")["state"] == "ready"


def test_a_line_without_end_is_refused_and_passed_over(worker: Raw):
    worker.write(b'{"type":"stats","id":"' + b"x" * ((64 << 20) + 10) + b'"}\n')
    assert worker.next()["code"] == "too_large"
    assert worker.ask("stats")["type"] == "stats"


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
