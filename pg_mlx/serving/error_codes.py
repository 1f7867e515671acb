"""The codes of errors. They are part of the protocol: none ever changes its meaning."""

from __future__ import annotations

from ..errors import PgMlxError

ERROR_CODES = {
    "bad_json": "the line is not a JSON object in UTF-8",
    "bad_request": "a field is missing, unknown, of a wrong type or out of range",
    "bad_image": "a picture cannot be read or is none",
    "bad_model": "the checkpoint cannot be loaded",
    "too_large": "a line, frame, picture, prompt or answer is over a limit, which `hello` lists",
    "out_of_memory": "the answer or its pictures would not fit in the memory limit even alone, or the model does not",
    "unsupported_protocol": "no version of the protocol that the client offers is spoken here",
    "hello_first": "the first message has to be hello",
    "duplicate_id": "a request with this id is not answered yet",
    "not_loaded": "no model is loaded, or one is just being loaded or unloaded",
    "busy": "the queue is full; ask again later",
    "shutting_down": "what runs is finished, nothing new is taken up",
    "cancelled": "the request was cancelled",
    "deadline": "the request's time was over before its answer was complete",
    "failed": "an unexpected failure; the request may be tried again",
    "worker_died": "the worker process ended while the request was in flight (reported by clients and `--supervise`)",
}


class ServingError(PgMlxError):
    """A request without a complete answer. code: one of ERROR_CODES."""

    def __init__(self, code: str, message: str):
        assert code in ERROR_CODES
        super().__init__(message)
        self.code = code
