"""/v1/responses: OpenAI's newer protocol, for one question. Nothing is stored. A request means the same as in chat."""

from __future__ import annotations

import secrets
import time
from typing import Any

from msgspec import convert, to_builtins

from ...generation import Generation
from ..service.requests import RegionFound, Text
from ..structs import TokenLogprob
from .chat import usage
from .errors import dumps
from .responses_schemas import (
    Incomplete,
    ModelResponse,
    OutputMessage,
    OutputText,
    OutputUsage,
    ResponsesRequest,
)
from .schemas import Message, UserMessage


def messages(asked: ResponsesRequest) -> list[Message]:
    """What was said, as the messages of a chat."""
    return [UserMessage(asked.input)] if isinstance(asked.input, str) else asked.input


class ResponseForm:
    """One answer in the form of /v1/responses, whole or as events of a stream."""

    def __init__(self, request: ResponsesRequest, model: str):
        """model: its name, as clients call it."""
        options = request.options()
        self._head: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(12)}",
            "created_at": int(time.time()),
            "model": model,
            "max_output_tokens": options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
        }
        self._message_id = f"msg_{secrets.token_hex(12)}"
        self._events = 0

    def whole(self, generation: Generation) -> ModelResponse:
        """The answer without streaming."""
        cut = generation.finish_reason == "length"
        used = usage(generation)
        return ModelResponse(
            **self._head,
            status="incomplete" if cut else "completed",
            incomplete_details=Incomplete() if cut else None,
            output=[self._message("incomplete" if cut else "completed", [_text(generation)])],
            usage=OutputUsage(used.prompt_tokens, used.completion_tokens, used.total_tokens),
        )

    def begin(self) -> bytes:
        """The first events."""
        empty = ModelResponse(**self._head, status="in_progress", incomplete_details=None, output=[], usage=None)
        message = self._message("in_progress", [])
        return (
            self._event("response.created", response=empty)
            + self._event("response.in_progress", response=empty)
            + self._event("response.output_item.added", output_index=0, item=message)
            + self._event("response.content_part.added", **self._place(), part=OutputText(""))
        )

    def more(self, event: Text | RegionFound) -> bytes:
        """The event for more text; empty for a region, for which this protocol has no place."""
        if isinstance(event, RegionFound):
            return b""
        logprobs = [token.to_json() for token in event.tokens or ()]
        return self._event("response.output_text.delta", **self._place(), delta=event.text, logprobs=logprobs)

    def end(self, generation: Generation) -> bytes:
        """The last events."""
        done = self.whole(generation)
        part = done.output[0].content[0]
        return (
            self._event("response.output_text.done", **self._place(), text=part.text, logprobs=part.logprobs)
            + self._event("response.content_part.done", **self._place(), part=part)
            + self._event("response.output_item.done", output_index=0, item=done.output[0])
            + self._event(f"response.{done.status}", response=done)
        )

    def failed(self, error: dict[str, Any]) -> bytes:
        """The event for a failure after the first event. error: the object in OpenAI's form."""
        return self._event("error", **{name: error[name] for name in ("code", "message", "param")})

    def _message(self, status: Any, content: list[OutputText]) -> OutputMessage:
        return OutputMessage(self._message_id, content, status)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._events, **to_builtins(fields)}
        self._events += 1
        return b"event: " + kind.encode() + b"\ndata: " + dumps(data) + b"\n\n"


def _text(generation: Generation) -> OutputText:
    logprobs = [token.to_json() for token in generation.logprobs or ()]
    return OutputText(generation.text, logprobs=convert(logprobs, list[TokenLogprob]))
