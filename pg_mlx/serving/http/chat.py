"""/v1/chat/completions: OpenAI's protocol over a model that does not chat. The text of the last user message is the
prompt, as "detect cat"; its pictures are the ones asked about."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...generation import Generation, SamplingOptions
from ...regions.export import to_json
from ..service.requests import Answered, RegionFound, Text
from .errors import APIError, ClientGone, bad_request, dumps
from .schemas import Fields, sampling
from .threads import in_thread

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
"""Parameters of OpenAI's that would change the answer, and the values with which they do not."""

IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
        *("prompt_cache_retention", "reasoning_effort", "verbosity", "parallel_tool_calls"),
    }
)
"""Those that change nothing in it."""


@dataclass(frozen=True)
class ChatRequest:
    model: str | None
    prompt: str
    pictures: list[tuple[str, str]]
    """Place in the request, and data URI, address or file."""
    options: SamplingOptions
    stream: bool
    usage: bool
    """At the end of the stream."""
    regions: bool
    """Tell boxes and masks beside the text; not in OpenAI's protocol."""
    constrain: bool
    """As in Ask; not in OpenAI's protocol."""


def read(value: Any) -> ChatRequest:
    """Raises APIError."""
    fields = Fields(value)
    prompt, pictures = _messages(fields)
    stream = fields.boolean("stream")
    options = fields.take("stream_options")
    if options is not None and not stream:
        raise bad_request("stream_options is only allowed with stream", "stream_options")
    streaming = Fields(options or {}, "stream_options")
    request = ChatRequest(
        model=fields.string("model", "") or None,
        prompt=prompt,
        pictures=pictures,
        options=sampling(fields),
        stream=stream,
        usage=streaming.boolean("include_usage"),
        regions=fields.boolean("regions"),
        constrain=fields.boolean("constrain"),
    )
    streaming.without({}, frozenset({"include_obfuscation"}))
    fields.without(NEUTRAL, IGNORED)
    return request


def _messages(fields: Fields) -> tuple[str, list[tuple[str, str]]]:
    """Prompt and pictures of the last message of the user's; its pictures may be in an earlier one."""
    prompt: str | None = None
    pictures: list[tuple[str, str]] = []
    for place, item in fields.items("messages"):
        message = Fields(item, place)
        role = message.string("role")
        if role not in ("user", "system", "developer", "assistant", "tool", "function"):
            raise bad_request(f"{place}.role is none that OpenAI has", f"{place}.role")
        if role == "user":
            prompt, own = _content(message)
            pictures = own or pictures
    if prompt is None:
        raise bad_request("there is no message of the role user", "messages")
    if not pictures:
        raise bad_request("there is no picture: send one as a part of type image_url", "messages")
    return prompt, pictures


def _content(message: Fields) -> tuple[str, list[tuple[str, str]]]:
    content = message.take("content")
    if isinstance(content, str):
        return content, []
    holder = Fields({"content": content}, message.name("")[:-1])
    texts, pictures = list[str](), list[tuple[str, str]]()
    for place, item in holder.items("content"):
        part = Fields(item, place)
        kind = part.string("type")
        if kind == "text":
            texts.append(part.string("text"))
        elif kind == "image_url":
            image = Fields(part.take("image_url"), f"{place}.image_url")
            pictures.append((f"{place}.image_url.url", image.string("url")))
        else:
            raise bad_request(f"{place}.type is neither text nor image_url", f"{place}.type")
    return " ".join(texts), pictures


class Completion:
    """One answer in OpenAI's words."""

    def __init__(self, request: ChatRequest, model: str):
        self._request = request
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, generation: Generation) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": generation.text, "refusal": None}
        if self._request.regions:
            message["regions"] = [to_json(region) for region in generation.regions]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": generation.finish_reason}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": usage(generation)}

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def more(self, event: Text | RegionFound) -> bytes:
        if isinstance(event, Text):
            return self._chunk({"content": event.text})
        return self._chunk({"regions": [to_json(event.region)]}) if self._request.regions else b""

    def end(self, generation: Generation) -> bytes:
        last = self._chunk({}, generation.finish_reason)
        if self._request.usage:
            last += self._event({"choices": [], "usage": usage(generation)})
        return last + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._event({"choices": [choice], **({"usage": None} if self._request.usage else {})})

    def _event(self, rest: dict[str, Any]) -> bytes:
        return b"data: " + dumps({**self._head, "object": "chat.completion.chunk", **rest}) + b"\n\n"


def usage(generation: Generation) -> dict[str, int]:
    """Picture rows count as prompt tokens, the token that ends an answer as one of it."""
    read, written = generation.stats.prompt_tokens, generation.stats.decode_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class EventStream(Response):
    """Server-sent events. A failure after the first one is told as an event, as OpenAI does it."""

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[bytes, None]):
        super().__init__()
        self.chunks = chunks
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
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
    """first: was waited for, so that what fails before it gets a status of its own."""
    async with aclosing(rest):
        yield completion.begin()
        event = first
        while not isinstance(event, Answered):
            masked = isinstance(event, RegionFound) and event.region.decoded is not None
            yield await in_thread(completion.more, event) if masked else completion.more(event)
            event = await anext(rest)
        yield completion.end(event.generation)
