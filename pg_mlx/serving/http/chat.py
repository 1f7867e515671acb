"""/v1/chat/completions: OpenAI's protocol for a model that does not chat. The text of the last user message is the
prompt, such as "detect cat"; its pictures are the pictures of the question."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, convert, to_builtins

from ...generation import Generation, TokenLogprob
from ...regions import Region as FoundRegion
from ...regions.export import to_json
from ..service.requests import RegionFound, Text
from ..structs import Region
from .errors import bad_request, dumps
from .parameters import check_lenient
from .schemas import (
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    InputTextPart,
    Logprobs,
    Message,
    Part,
    TextPart,
    Usage,
    UserMessage,
)


def check_chat(value: Any, model: str) -> tuple[ChatRequest, dict[str, str]]:
    """The chat request that a parsed body is, and the header that names what is ignored of it. model: the name of the
    one that answers. Raises APIError."""
    asked, header = check_lenient(value, ChatRequest, model)
    if asked.stream_options is not UNSET and not asked.stream:
        raise bad_request("stream_options is only allowed with stream", "stream_options")
    if asked.top_logprobs and not asked.logprobs:
        raise bad_request("top_logprobs is only allowed with logprobs", "top_logprobs")
    return asked, header


def question(messages: Sequence[Message], name: str) -> tuple[str, list[tuple[str, str]]]:
    """The prompt, and for each picture its place in the request and its name (data URI, address or file).

    The prompt is the text of the user's last message that has any. The pictures are those of the user's last message
    that has any. name: of the field with the messages. Raises APIError.
    """
    prompt: str | None = None
    images: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        if isinstance(message, UserMessage):
            words, own = _content(message.content, f"{name}[{index}].content")
            prompt, images = words or prompt or "", own or images
    if prompt is None:
        raise bad_request("there is no message of the role user", name)
    if not images:
        missing = "there is no picture, and this model only answers questions about pictures"
        raise bad_request(f"{missing}: send one as a part of type image_url or input_image", name)
    return prompt, images


def _content(content: str | list[Part], place: str) -> tuple[str, list[tuple[str, str]]]:
    """The texts of a message with spaces between, and its pictures as in `question`."""
    if isinstance(content, str):
        return content, []
    texts, images = list[str](), list[tuple[str, str]]()
    for index, part in enumerate(content):
        if isinstance(part, TextPart | InputTextPart):
            texts.append(part.text)
        elif isinstance(part.image_url, str):
            images.append((f"{place}[{index}].image_url", part.image_url))
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

    def failed(self, error: dict[str, Any]) -> bytes:
        """The event for a failure after the first event. error: the object in OpenAI's form."""
        return b"data: " + dumps({"error": error}) + b"\n\n"

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
