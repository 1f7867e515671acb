"""Errors of the HTTP interface: a status, and an object in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec import to_builtins
from starlette.responses import Response

from ..error_codes import ServingError
from ..service.requests import Failed

STATUS = {
    "bad_request": 400,
    "bad_image": 400,
    "too_large": 413,
    "out_of_memory": 413,
    "busy": 429,
    "cancelled": 499,
    "failed": 500,
    "not_loaded": 503,
    "shutting_down": 503,
    "deadline": 504,
}
"""The HTTP status of each code of the service."""

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class APIError(Exception):
    """A request that gets an error instead of an answer. param: the place in the request that is wrong."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("Retry-After", "1")

    @classmethod
    def of(cls, failure: ServingError | Failed) -> APIError:
        """The error for a failure of the service."""
        return cls(STATUS[failure.code], failure.code, str(getattr(failure, "message", failure)))

    def body(self) -> dict[str, Any]:
        """In the form of schemas.Error."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The response that carries it."""
        return Json(self.body(), self.status, self.headers)


def bad_request(message: str, param: str | None = None) -> APIError:
    """The error for a request that is wrong at this place."""
    return APIError(400, "bad_request", message, param)


class ClientGone(Exception):
    """The client has hung up: there is nobody to answer."""


class Json(Response):
    """A response of JSON: a dict or a struct of schemas.py."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return dumps(to_builtins(content))


def dumps(value: Any) -> bytes:
    """JSON in ASCII: an error message may repeat half a surrogate pair of the client's, which UTF-8 cannot hold."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
