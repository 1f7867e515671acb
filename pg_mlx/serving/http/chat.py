"""/v1/chat/completions: OpenAI's protocol for a model that does not chat. The text of the last user message is the
prompt, such as "detect cat"; its pictures are the pictures of the question."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import UNSET, convert, to_builtins
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...generation import Generation, TokenLogprob
from ...regions import Region as FoundRegion
from ...regions.export import to_json
from ..service.requests import Answered, RegionFound, Text
from ..structs import Region
from .body import check
from .errors import APIError, ClientGone, bad_request, dumps
from .events import in_thread
from .schemas import (
    NEUTRAL,
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    ImagePart,
    Logprobs,
    TextPart,
    Usage,
    UserMessage,
)


def check_chat(value: Any) -> ChatRequest:
    """The chat request that a parsed body is. Raises APIError."""
    asked = check(value, ChatRequest)
    if asked.stream_options is not UNSET and not asked.stream:
        raise bad_request("stream_options is only allowed with stream", "stream_options")
    if asked.top_logprobs and not asked.logprobs:
        raise bad_request("top_logprobs is only allowed with logprobs", "top_logprobs")
    for name, allowed in NEUTRAL.items():
        if not any(_same(getattr(asked, name), other) for other in allowed):
            raise APIError(400, "unsupported_parameter", f"{name} is not supported by this model", name)
    return asked


def _same(value: Any, other: Any) -> bool:
    """In JSON true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def question(asked: ChatRequest) -> tuple[str, list[tuple[str, str]]]:
    """The prompt, and of each picture its place in the request and its name (data URI, address or file): those of the
    last message of a user, whose pictures may be in an earlier one. Raises APIError."""
    prompt: str | None = None
    images: list[tuple[str, str]] = []
    for index, message in enumerate(asked.messages):
        if isinstance(message, UserMessage):
            prompt, own = _content(message.content, f"messages[{index}].content")
            images = own or images
    if prompt is None:
        raise bad_request("there is no message of the role user", "messages")
    if not images:
        raise bad_request("there is no picture: send one as a part of type image_url", "messages")
    return prompt, images


def _content(content: str | list[TextPart | ImagePart], place: str) -> tuple[str, list[tuple[str, str]]]:
    """The texts of a message with spaces between, and its pictures as in `question`."""
    if isinstance(content, str):
        return content, []
    texts, images = list[str](), list[tuple[str, str]]()
    for index, part in enumerate(content):
        if isinstance(part, TextPart):
            texts.append(part.text)
        else:
            images.append((f"{place}[{index}].image_url.url", part.image_url.url))
    return " ".join(texts), images


class Completion:
    """One answer in OpenAI's form, whole or as events of a stream."""

    def __init__(self, request: ChatRequest, model: str):
        """model: its name, as clients call it."""
        self._regions = request.regions
        self._usage = request.stream_options is not UNSET and request.stream_options.include_usage
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model,
        }  # fmt: skip

    def whole(self, generation: Generation) -> ChatCompletion:
        """The answer without streaming."""
        message = AnswerMessage(generation.text)
        if self._regions:
            message.regions = regions_of(generation.regions)
        choice = Choice(message, generation.finish_reason)  # type: ignore[arg-type]  # never cancelled
        if generation.logprobs is not None:
            choice.logprobs = convert(_logprobs(generation.logprobs), Logprobs)
        choices = [choice]
        return ChatCompletion(**self._head, choices=choices, usage=usage(generation))

    def begin(self) -> bytes:
        """The first event."""
        return self._chunk({"role": "assistant", "content": ""})

    def more(self, event: Text | RegionFound) -> bytes:
        """The event for more text or a region; empty for a region that was not asked for."""
        if isinstance(event, Text):
            return self._chunk({"content": event.text}, logprobs=_logprobs(event.tokens) if event.tokens else None)
        return self._chunk({"regions": [to_json(event.region)]}) if self._regions else b""

    def end(self, generation: Generation) -> bytes:
        """The last events."""
        last = self._chunk({}, generation.finish_reason)
        if self._usage:
            last += self._event({"choices": [], "usage": to_builtins(usage(generation))})
        return last + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._event({"choices": [choice], **({"usage": None} if self._usage else {})})

    def _event(self, rest: dict[str, Any]) -> bytes:
        return b"data: " + dumps({**self._head, "object": "chat.completion.chunk", **rest}) + b"\n\n"


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": [token.to_json() for token in tokens], "refusal": None}


def regions_of(regions: Sequence[FoundRegion]) -> list[Region]:
    """Regions as the answers hold them."""
    return [Region(**to_json(region)) for region in regions]


def usage(generation: Generation) -> Usage:
    """The tokens read and written."""
    read, written = generation.stats.prompt_tokens, generation.stats.decode_tokens
    return Usage(read, written, read + written)


class EventStream(Response):
    """Server-sent events. A failure after the first one is sent as an event, as OpenAI does it."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes, None]):
        """chunks: closed at the end, also if the client hangs up."""
        super().__init__()
        self.chunks = chunks
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        async with aclosing(self.chunks):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async for chunk in self.chunks:
                    if chunk:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except APIError as refused:
                chunk = b"data: " + dumps(refused.body()) + b"\n\n"
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except ClientGone:
                return
            await send({"type": "http.response.body", "body": b""})


async def stream(
    completion: Completion,
    first: Text | RegionFound | Answered,
    rest: AsyncGenerator[Text | RegionFound | Answered, None],
) -> AsyncGenerator[bytes, None]:
    """The events of an answer, as bytes. first: has been waited for, so that a failure before it gets a status of its
    own. rest: the events after it; closed at the end."""
    async with aclosing(rest):
        yield completion.begin()
        event = first
        while not isinstance(event, Answered):
            masked = isinstance(event, RegionFound) and event.region.decoded is not None
            yield await in_thread(completion.more, event) if masked else completion.more(event)
            event = await anext(rest)
        yield completion.end(event.generation)
