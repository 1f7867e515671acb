"""Whatever is sent to pg-mlx serve, it answers as its own OpenAPI document says, and goes on."""

from __future__ import annotations

import copy
import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from helpers.server import data_uri, serving
from helpers.service import service
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

import pg_mlx.serving.http
from pg_mlx.serving.service.service import Service

pytestmark = pytest.mark.ops("cpu", reason="it tries what is read, not what is computed")

FUZZED_BODIES = int(os.environ.get("PG_MLX_FUZZED_BODIES", "150"))
"""10000 for a thorough run."""
DOCUMENT = json.loads((Path(pg_mlx.serving.http.__file__).parent / "openapi.json").read_bytes())
ROUTES = [(path, method) for path, methods in DOCUMENT["paths"].items() for method in methods]
POSTS = [path for path, method in ROUTES if method == "post"]
fuzzing = settings(
    deadline=None, derandomize=FUZZED_BODIES <= 150, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def shared() -> Iterator[Service]:
    with service(batch_size=2) as running:
        yield running


@pytest.fixture(scope="module")
def client(shared: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    limits = dict(header_s=0.5, body_s=0.5, request_s=120.0, body_bytes=1 << 20)
    with serving(shared, folders=(tmp_path_factory.mktemp("open"),), **limits) as client:
        yield client


def validator(schema: Any) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]})


# --- what is sent -------------------------------------------------------------------------------------


def small_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), "red").save(file, "PNG")
    return file.getvalue()


PNG = small_png()
TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Fields by which an answer may become long: they keep small or wrong values."""
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=9)
    | st.sampled_from(["\ud800", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
seldom = st.sampled_from([False] * 5 + [True])
prompts = st.sampled_from(["ocr", "detect red circle ; star", "segment cat", "", "\ud800"]) | st.text(max_size=9)
pictures = st.sampled_from(
    [*[data_uri(PNG)] * 8, "data:image/png;base64,QUFB", "data:,", "http://127.0.0.1/a.png", "../a", "a\0b", ""]
)
BY_NAME = {
    "prompt": prompts,
    "text": prompts,
    "url": pictures,
    "image": pictures,
    "images": st.lists(pictures, min_size=1, max_size=3),
    "model": st.sampled_from([*["demo"] * 9, "other"]),
    **dict.fromkeys(TOKENS, st.integers(1, 3)),
}


def values(schema: Any, name: str = "") -> st.SearchStrategy[Any]:
    """Valid ones, by the part of JSON Schema that the document uses."""
    if name in BY_NAME:
        return BY_NAME[name]
    if "$ref" in schema:
        return values(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema and "properties" not in schema:
        return st.one_of([values(one, name) for one in schema["anyOf"]])
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kinds = schema.get("type", "null")
    return st.one_of([_of_kind(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)])


def _of_kind(kind: str, schema: Any) -> st.SearchStrategy[Any]:
    if kind == "object":
        fields = {name: values(field, name) for name, field in schema.get("properties", {}).items()}
        required = {name: fields.pop(name) for name in schema.get("required", ())}
        return st.fixed_dictionaries(required, optional=fields)
    if kind == "array":
        return st.lists(values(schema.get("items", {})), min_size=schema.get("minItems", 0), max_size=3)
    if kind == "integer":
        return st.integers(schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1))
    if kind == "number":
        above = "exclusiveMinimum" in schema
        least = schema["exclusiveMinimum"] if above else schema.get("minimum", -9)
        return st.floats(least, schema.get("maximum", 9), exclude_min=above)
    return {"string": st.text(max_size=9), "boolean": st.booleans(), "null": st.none()}[kind]


@st.composite
def bodies(draw: st.DrawFn, schema: Any) -> Any:
    """A valid one, or one with something in it replaced, added or left out."""
    body = copy.deepcopy(draw(values(schema)))  # parts of it belong to the document, and will be changed
    body["max_tokens"] = draw(st.integers(1, 3))
    if "images" in body and "image" in body:
        del body[draw(st.sampled_from(["image", "images"]))]
    said = body.get("messages", body.get("input"))
    if isinstance(said, list) and not draw(seldom):  # or few have a picture
        old = [{"type": "text", "text": draw(prompts)}, {"type": "image_url", "image_url": {"url": draw(pictures)}}]
        new = [{"type": "input_text", "text": draw(prompts)}, {"type": "input_image", "image_url": draw(pictures)}]
        said.append({"role": "user", "content": draw(st.sampled_from([old, new]))})
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        holder, key = draw(st.sampled_from(list(_places(body))))
        if key in TOKENS:
            holder[key] = draw(st.sampled_from([0, -2, "9", True, 1.5, [], 3.0]))
        elif isinstance(holder, dict) and draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw(json_values))
    if draw(st.sampled_from([False, False, True])):
        extra = draw(
            st.sampled_from(["user", "n", "stop", "tools", "logprobs", "response_format"]) | st.text(max_size=3)
        )
        body[extra] = copy.deepcopy(draw(json_values | st.sampled_from([1, [], False, {}, "none", {"type": "text"}])))
    return body


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


junk = st.binary(max_size=40)


@st.composite
def broken(draw: st.DrawFn, data: bytes) -> bytes:
    """With some of it lost, or something put in."""
    place = draw(st.integers(0, len(data)))
    return data[:place] + draw(junk) + data[place + draw(st.integers(0, 9)) :]


HEADERS = {
    "Accept": st.sampled_from(["text/html", "*/*;q=0", "x"]),
    "Authorization": st.sampled_from(["Bearer", "Bearer x", "Basic eDp5"]),
    "Content-Encoding": st.sampled_from(["gzip", "x"]),
    "Cookie": st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=20),
    "Expect": st.just("100-continue"),
    "Host": st.sampled_from(["localhost", "evil.example", "[::1]:1", "a b"]),
    "Origin": st.sampled_from(["null", "http://evil.example", "x"]),
    "Range": st.just("bytes=0-0"),
    "Upgrade": st.just("websocket"),
    "X-Forwarded-For": st.just("1.2.3.4"),
}


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, httpx.Request, Any]:
    """The path in the document of what answers, a request, and its JSON if there is one and nothing in the bytes was
    broken."""
    route, method = draw(st.sampled_from([*ROUTES, *[(path, "post") for path in POSTS * 9]]))
    names = st.sampled_from(["demo", "other", "a/b", "%2e%2e%2f", "%00", "%ff"])
    path = route.replace("{name}", draw(names)) if not draw(seldom) else draw(st.sampled_from(["/x", "//", "/v1/"]))
    method = draw(st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS"])) if draw(seldom) else method.upper()
    headers = {name: draw(value) for name, value in HEADERS.items() if draw(st.sampled_from([False] * 15 + [True]))}
    address, body, content = f"http://localhost{path}", None, b""
    if route in POSTS:
        kinds = DOCUMENT["paths"][route]["post"]["requestBody"]["content"]
        kind = draw(st.sampled_from(list(kinds)))
        body = draw(bodies(kinds[kind]["schema"]))
        if kind == "application/json":
            content = json.dumps(body).encode()
            headers["Content-Type"] = kind
        else:
            files = [("image", PNG if draw(st.booleans()) else draw(junk))] if body.pop("image", None) else []
            files += [("x", b"")] if draw(seldom) else []
            fields = {f"{name}": value if isinstance(value, str) else json.dumps(value) for name, value in body.items()}
            fields = {_sendable(name): _sendable(value) for name, value in fields.items()}
            form = httpx.Request("POST", address, data=fields, files=files or [("image", b"")])
            content, body = form.read(), None
            headers["Content-Type"] = form.headers["Content-Type"]
        if draw(seldom):
            content, body = draw(broken(content) | junk), None
        if draw(seldom):
            strange = ["", "text/plain", "APPLICATION/JSON; charset=utf-16", "multipart/form-data; boundary=\xff", "/"]
            headers["Content-Type"] = draw(st.sampled_from(strange))
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    if path == "//":  # slashes at the end change nothing, so the page answers, and reads no body
        route, body = "/", None
    return route, httpx.Request(method, address, headers=encoded, content=content), body


def _sendable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


# --- what is answered ---------------------------------------------------------------------------------


@settings(fuzzing, max_examples=FUZZED_BODIES)
@given(sent=requests())
def test_whatever_is_asked_the_answer_is_a_documented_one(
    client: httpx.Client, shared: Service, sent: tuple[str, httpx.Request, Any]
):
    route, request, body = sent
    host = request.headers["host"] if request.headers["host"] != "localhost" else client.base_url.netloc.decode()
    request.headers["host"] = host
    request.url = request.url.copy_with(host=client.base_url.host, port=client.base_url.port)
    answer = client.send(request)
    event(f"{route} {request.method} {answer.status_code}")
    text, kind = answer.text, answer.headers.get("content-type", "").partition(";")[0]
    assert answer.status_code < 500 and "Traceback" not in text, text
    documented = DOCUMENT["paths"].get(route, {}).get(request.method.lower())  # the page is not in it
    if documented is None or answer.status_code in (404, 405):
        assert answer.status_code in (200, 400, 403, 404, 405), text
        responses: Any = {}
    else:
        responses = documented["responses"]
        assert str(answer.status_code) in responses, (answer.status_code, text)
    if request.method != "HEAD":
        if answer.status_code >= 400:
            assert kind == "application/json"
            schema: Any = {"$ref": "#/components/schemas/Error"}
        else:
            schema = responses[str(answer.status_code)]["content"][kind]["schema"] if responses else {}
        if kind == "application/json":
            validator(schema).validate(answer.json())
        if kind == "text/event-stream":
            for sent_event in text.strip().split("\n\n"):
                data = sent_event.splitlines()[-1].removeprefix("data: ")
                assert data == "[DONE]" or json.loads(data)
    if answer.status_code == 200 and body is not None:
        asked = documented["requestBody"]["content"]["application/json"]["schema"]
        validator(asked).validate(body)  # what is understood is documented
    assert shared.stats()["state"] == "ready"


@settings(fuzzing, max_examples=-(-FUZZED_BODIES // 5))
@given(data=st.data())
def test_whatever_bytes_come_the_server_answers_the_next(client: httpx.Client, shared: Service, data: st.DataObject):
    body = json.dumps({"prompt": "ocr", "image": data_uri(PNG), "max_tokens": 1}).encode()
    chunked = data.draw(st.booleans())
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
    lines = ["POST /v1/regions HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close"]
    head = "\r\n".join([*lines, length, "", ""]).encode()
    whole = head + (b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body)
    part = data.draw(st.sampled_from([head, whole]))
    broken_part = data.draw(broken(part))
    answer = b""
    with socket.create_connection((client.base_url.host, client.base_url.port), timeout=2) as connection:
        try:
            connection.sendall(broken_part + whole[len(part) :])
            while more := connection.recv(1 << 16):
                answer += more
        except (TimeoutError, ConnectionError):
            pass
    head, _, told = answer.partition(b"\r\n\r\n")
    assert not answer or head[:13] in (b"HTTP/1.1 200 ", *[b"HTTP/1.1 4%02d " % code for code in range(100)]), answer
    assert b"Traceback" not in answer
    if head.startswith(b"HTTP/1.1 4"):
        # What follows may have been understood as another request, and refused as well.
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        validator({"$ref": "#/components/schemas/Error"}).validate(json.loads(told[:length]))
    assert client.get("/health").status_code == 200
