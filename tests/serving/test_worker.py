"""The worker as another program sees it: lines and frames in, valid messages out."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.service import MIXED, alone
from helpers.worker import CLIENT, LONG, MESSAGES, PATH, WORKER, Raw

from pg_mlx.checkpoint.load import LoadOptions
from pg_mlx.serving.error_codes import ERROR_CODES
from pg_mlx.serving.service.service import ServingError
from pg_mlx.serving.worker import schemas
from pg_mlx.serving.worker.pictures import confined
from pg_mlx.serving.worker.worker import loading


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
    with Raw("--layers-at-once", "3", "--dtype", "float16") as raw:
        raw.greet(load=False)
        assert raw.ask("load", layers_at_once=0)["code"] == "bad_request"
        assert raw.ask("load", memory="lots")["code"] == "bad_model"
        assert raw.ask("load", layers_at_once=1, sliding_window=False, dtype="float32")["model"]["dtype"] == "float32"
        assert raw.ask("generate", prompt="caption en", images=[PATH])["type"] == "done"


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
