"""openapi.json: the addresses of `pg-mlx serve`, and what they read and answer."""

from __future__ import annotations

import copy
from typing import Any

from pg_mlx.serving.http import responses_schemas, schemas

from .json_schema import Json, definitions

WHERE = "#/components/schemas/"
REQUESTS = (schemas.ChatRequest, responses_schemas.ResponsesRequest, schemas.RegionsRequest)
ANSWERS = (
    *(schemas.Error, schemas.Health, schemas.Model, schemas.Models),
    *(schemas.ChatCompletion, responses_schemas.ModelResponse, schemas.Regions),
)
MODEL = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
IGNORED = {"description": "Names of fields that were ignored.", "required": False, "schema": {"type": "string"}}
STATUS = {
    400: "Something in the request is wrong; param names what.",
    401: "The API key is missing or wrong.",
    403: "Of another origin, or under a name that is not the server's.",
    404: "There is no such model.",
    408: "The body came too slowly.",
    413: "Body, picture, prompt or answer is over a limit.",
    415: "The Content-Type is another.",
    429: "The queue is full, or too many bytes are held; ask again later.",
    500: "An unexpected failure.",
    503: "The model is being loaded, the server is ending, or too many connections are open.",
    504: "The time was over before the answer was complete.",
}
"""What the statuses of errors mean."""


def document() -> Json:
    """The version is the package's, which the server puts in."""
    requests, answers = definitions(REQUESTS, WHERE), definitions(ANSWERS, WHERE)
    form = _form(requests["RegionsRequest"])
    requests["RegionsRequest"]["anyOf"] = [{"required": ["image"]}, {"required": ["images"]}]
    for schema in requests.values():
        _allow_null(schema)
    for schema in answers.values():
        _require_what_is_sent(schema)
    components = {**requests, "RegionsForm": form, **answers}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pg-mlx serve",
            "version": "0",
            "description": "PaliGemma over HTTP. docs/server.md describes it.",
        },
        "security": [{}, {"key": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": dict(sorted(components.items())),
        },
    }


def _paths() -> Json:
    health = _answer("The server answers.", "Health")
    metrics = {"description": "Its text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
    chat = _answer("The answer, with stream as events of chat.completion.chunk objects", "ChatCompletion")
    responses = _answer("The answer, with stream as events such as response.output_text.delta", "ModelResponse")
    for answer in (chat, responses):
        answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}
        answer["headers"] = {"X-Ignored-Parameters": IGNORED}
    not_ready = _answer("It does not: loading, broken, shutting_down.", "Health")
    get_health = {**_get("health", "Whether it answers", health, 403), "security": []}
    get_health["responses"]["503"] = not_ready
    return {
        "/health": {"get": get_health},
        "/metrics": {"get": _get("metrics", "For Prometheus", metrics, 401, 403)},
        "/v1/models": {"get": _get("models", "The model", _answer("A list of one", "Models"), 401, 403)},
        "/v1/models/{name}": {
            "get": {
                **_get("model", "The model, if it is called so", _answer("It is.", "Model"), 401, 403, 404),
                "parameters": [MODEL],
            }
        },
        "/v1/chat/completions": {
            "post": _post("chat", "Ask about pictures, in OpenAI's form", chat, {"application/json": "ChatRequest"})
        },
        "/v1/responses": {
            "post": _post(
                "responses", "The same in OpenAI's newer form", responses, {"application/json": "ResponsesRequest"}
            )
        },
        "/v1/regions": {
            "post": _post(
                "regions",
                "Boxes and masks",
                _answer("The answer", "Regions"),
                {"application/json": "RegionsRequest", "multipart/form-data": "RegionsForm"},
            )
        },
    }


def _get(name: str, summary: str, answer: Json, *errors: int) -> Json:
    responses = {"200": answer, **{str(status): _answer(STATUS[status], "Error") for status in errors}}
    return {"operationId": name, "summary": summary, "responses": responses}


def _post(name: str, summary: str, answer: Json, bodies: dict[str, str]) -> Json:
    content = {kind: {"schema": {"$ref": WHERE + struct}} for kind, struct in bodies.items()}
    return {**_get(name, summary, answer, *STATUS), "requestBody": {"required": True, "content": content}}


def _answer(description: str, struct: str) -> Json:
    return {"description": description, "content": {"application/json": {"schema": {"$ref": WHERE + struct}}}}


def _form(request: Json) -> Json:
    """The same request as a form: its pictures are files, which are all called image."""
    form = copy.deepcopy(request)
    del form["properties"]["images"]
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    form["properties"]["image"] = {**file, "description": "A file; may be repeated."}
    return {**form, "description": "Numbers and true or false as in JSON.", "required": ["prompt", "image"]}


def _require_what_is_sent(schema: Json) -> None:
    """A field of an answer that has a default has no other value, and is always sent."""
    for name, field in schema["properties"].items():
        if "default" in field or field.get("type") == "null":
            field.pop("default", None)
            schema.setdefault("required", []).append(name)


def _allow_null(schema: Any) -> None:
    """null is as good as absent in a request, in fields that there are and in others."""
    for name, field in schema["properties"].items():
        if name in schema.get("required", ()):
            continue
        if "enum" in field:
            field["enum"] = [*field["enum"], *([None] if None not in field["enum"] else [])]
        elif "type" in field:
            field["type"] = [field["type"], "null"]
        elif "$ref" in field:
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}
    if schema.get("additionalProperties") is False:
        schema["additionalProperties"] = {"type": "null"}
