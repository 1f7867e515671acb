"""Failures as HTTP tells them: a status, and an object in the form of OpenAI's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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
"""By the service's codes."""

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class APIError(Exception):
    """A request that gets an error instead of an answer."""

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
        return cls(STATUS[failure.code], failure.code, str(getattr(failure, "message", failure)))

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return Json(self.body(), self.status, self.headers)


def bad_request(message: str, param: str | None = None) -> APIError:
    return APIError(400, "bad_request", message, param)


class ClientGone(Exception):
    """Nobody is there any more to be answered."""


class Json(Response):
    """ASCII, so that a client's half surrogate cannot make its own error message unsendable."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dumps(content)


def dumps(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
