"""What a stranger may try at the door of pg-mlx serve, and what becomes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers.pictures import png_header
from helpers.server import CHAT, chat, data_uri, raw, refused, serving
from helpers.service import SCENE, service

from pg_mlx.serving.service.service import Service

pytestmark = pytest.mark.ops("cpu", reason="what is refused is not computed")


@pytest.fixture(scope="module")
def shared():
    with service(pixels=1_000_000) as running:
        yield running


@pytest.fixture(scope="module")
def client(shared: Service):
    with serving(shared, header_s=1.0, body_s=1.0, body_bytes=2 << 20) as client:
        yield client
        assert client.post(CHAT, json=chat()).status_code == 200  # whatever was tried


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        (data_uri(png_header(50_000, 50_000)), (413, "too_large")),
        (data_uri(png_header(1001, 1000)), (413, "too_large")),
        (data_uri(png_header(100, 100)), (400, "bad_image")),
        (data_uri(b"no picture"), (400, "bad_image")),
        ("data:image/png;base64,%%%%", (400, "bad_image")),
        ("data:image/png,abc", (400, "bad_image")),
        ("ftp://example.com/a.png", (400, "bad_request")),
        ("https://example.com/a.png", (400, "not_allowed")),
        ("/etc/passwd", (400, "not_allowed")),
        ("file:///etc/passwd", (400, "not_allowed")),
    ],
)
def test_pictures_that_are_none_or_too_large(client: httpx.Client, picture: str, code: tuple[int, str]):
    refused(client.post(CHAT, json=chat("ocr", picture)), *code)


def test_files_are_read_from_the_folder_alone(shared: Service, tmp_path: Path):
    folder, outside = tmp_path / "open", tmp_path / "outside.png"
    folder.mkdir()
    for path in (folder / "a b.png", outside, tmp_path / "open-not.png"):
        path.write_bytes(SCENE.read_bytes())
    (folder / "link.png").symlink_to(outside)
    (folder / "circle").symlink_to(folder / "circle")
    with serving(shared, folders=(folder,)) as client:
        for name in ("a b.png", str(folder / "a b.png"), f"file://{folder}/a%20b.png", "../open/a b.png"):
            assert client.post(CHAT, json=chat("ocr", name)).status_code == 200, name
        answers = set()
        for name in (
            "../outside.png", str(outside), f"file://{outside}", "link.png", "../open-not.png", "circle", "nothere",
            "a\0b", "", ".", "file://elsewhere/a%20b.png", "..%2foutside.png", "/etc/passwd", "/dev/zero", "x" * 5000,
        ):  # fmt: skip
            response = client.post(CHAT, json=chat("ocr", name))
            refused(response, 400, "bad_image")
            answers.add(response.text)
        assert len(answers) == 1  # which tells nothing of what there is


def test_other_origins_and_other_names_are_refused(client: httpx.Client, shared: Service):
    for headers, code in [
        ({"Origin": "https://evil.example"}, "wrong_origin"),
        ({"Origin": "null"}, "wrong_origin"),
        ({"Origin": "http://localhost:1"}, "wrong_origin"),
        ({"Host": "evil.example"}, "wrong_host"),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, "wrong_host"),
        ({"Host": "localhost.evil.example:80"}, "wrong_host"),
    ]:
        refused(client.post(CHAT, json=chat(), headers=headers), 403, code)
        assert code != "wrong_host" or "--allow-host" in client.get("/v1/models", headers=headers).text
        refused(client.get("/v1/models", headers=headers), 403, code)
    own = str(client.base_url).rstrip("/")
    assert client.get("/v1/models", headers={"Origin": own}).status_code == 200
    refused(client.post(CHAT, content=json.dumps(chat()), headers={"Content-Type": "text/plain"}), 415, "bad_request")
    with serving(shared, origins=("https://good.example",)) as other:
        good = {"Origin": "https://good.example"}
        assert other.get("/v1/models", headers=good).headers["access-control-allow-origin"] == good["Origin"]
        asked = {**good, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        assert other.options(CHAT, headers=asked).status_code == 200
        refused(other.get("/v1/models", headers={"Origin": "https://evil.example"}), 403, "wrong_origin")


def test_a_key_is_asked_for(shared: Service, capfd: pytest.CaptureFixture):
    with serving(shared, api_key="k3y", hosts=None, verbose=True) as client:
        for value in (None, "k3y", "Bearer", "Bearer k3", "Bearer k3yy", "Basic k3y", b"Bearer \xff"):
            headers = {} if value is None else {"Authorization": value}
            for response in (client.post(CHAT, json=chat(), headers=headers), client.get("/metrics", headers=headers)):
                refused(response, 401, "invalid_api_key")
            assert client.get("/health", headers=headers).status_code == 200
        good = {"Authorization": "Bearer k3y", "Host": "pg.example"}
        assert client.get("/v1/models", headers=good).status_code == 200
        assert client.post(CHAT, json=chat(), headers=good).status_code == 200
    assert "k3y" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}", b'{"messages": NaN}',
        b'{"max_tokens": 1e999}', b'{"temperature": 1' + b"0" * 400 + b"}", b'{"top_k": -1' + b"0" * 400 + b"}",
        b'{"messages": [], "messages": []}', b'{"user": {"a": 1, "b": {"c": null, "c": 2}}}',
        b'{"messages": []}', b'{"messages": [{"role": "user", "content": "ocr"}]}', b'{"\\ud800": 1, "messages": [{}]}',
    ],
)  # fmt: skip
def test_bodies_that_are_none(client: httpx.Client, body: bytes):
    refused(client.post(CHAT, content=body, headers={"Content-Type": "application/json"}), 400, "bad_request")


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 0}, {"max_tokens": -2}, {"max_tokens": "9"}, {"max_tokens": 1e300}, {"max_tokens": True},
        {"max_tokens": 10**300}, {"top_k": -(10**300)}, {"top_k": 2**64}, {"seed": -(2**63) - 1}, {"top_p": 1e300},
        {"temperature": -1}, {"top_p": 0}, {"seed": 2**64}, {"stream": 1}, {"stream_options": {}},
        {"stop": [1]}, {"tools": [{}]},
        {"response_format": {"type": "json_object"}}, {"logprobs": 1}, {"guided_json": {"a": 1}}, {"model": 7},
    ],
)  # fmt: skip
def test_parameters_that_cannot_be_met(client: httpx.Client, more: dict[str, Any]):
    content = json.dumps(chat("ocr", **more))
    response = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]["param"]


def spoiled(place: str, value: Any) -> dict[str, Any]:
    """A request with something else at this place; with nothing there if the value is None."""
    body: Any = chat("ocr", stream=True, stream_options={})
    *way, last = re.findall(r"\w+", place)
    inner = body
    for step in way:
        inner = inner[int(step) if step.isdigit() else step]
    if value is None:
        del inner[last]
    else:
        inner[int(last) if last.isdigit() else last] = value
    return body


LONG = "data:image/png;base64," + "QUFB" * 1000


@pytest.mark.parametrize(
    ("place", "value", "code"),
    [
        ("messages", {}, "bad_request"), ("messages[0]", [LONG], "bad_request"),
        ("messages[0].role", LONG, "bad_request"), ("messages[0].role", None, "bad_request"),
        ("messages[0].content", 5, "bad_request"), ("messages[0].content", [], "bad_request"),
        ("messages[0].content[0].type", LONG, "bad_request"), ("messages[0].content[1].type", 1, "bad_request"),
        ("messages[0].content[1].image_url", [LONG], "bad_request"),
        ("messages[0].content[1].image_url.url", [LONG], "bad_request"),
        ("stream_options.include_usage", "s3cret", "bad_request"),
        ("max_tokens", LONG, "bad_request"), ("tool_choice", LONG, "unsupported_parameter"),
    ],
)  # fmt: skip
def test_an_error_names_the_place_in_one_short_line_without_the_value(
    client: httpx.Client, place: str, value: Any, code: str
):
    response = client.post(CHAT, json=spoiled(place, value))
    refused(response, 400, code)
    error = response.json()["error"]
    assert error["param"] == place[:100] and place[:100] in error["message"]
    assert len(error["message"]) < 250 and "\n" not in error["message"] and "s3cret" not in error["message"]
    assert "QUFB" not in error["message"]


def test_forms_that_are_none(client: httpx.Client):
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    for body in (b"", b"--b\r\n", b"--b\r\nContent-Disposition: x\r\n\r\n\r\n--b--\r\n", b"\xff" * 1000):
        refused(client.post("/v1/regions", content=body, headers=kind), 400, "bad_request")
    bare = client.post("/v1/regions", content=b"", headers={"Content-Type": "multipart/form-data"})
    refused(bare, 400, "bad_request")
    for fields in ({}, {"prompt": "ocr", "max_tokens": "many"}, {"prompt": "ocr", "else": "1"}):
        response = client.post("/v1/regions", data=fields, files={"image": SCENE.read_bytes()})
        assert response.status_code == 400, response.text


@pytest.mark.parametrize("target", [b"models", b"*", b"regions/"])
def test_a_path_without_a_slash_at_the_beginning_is_none(shared: Service, target: bytes):
    with serving(shared) as client:
        answer = raw(client, b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 404 ") and b"not_found" in answer
