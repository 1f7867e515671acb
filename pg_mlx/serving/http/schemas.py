"""Every request and answer of the HTTP interface. `openapi.json` is generated from these structs
(`python -m tools.write_schemas`), and requests are checked by them.

The fields of a request that are null are left out before (body.parse): null is as good as absent everywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_type_hints

from msgspec import UNSET, Meta, Struct, UnsetType

from ..structs import (
    MAX_ALTERNATIVES,
    Count,
    Device,
    Dtype,
    FinishReason,
    Malformed,
    ModelType,
    Positive,
    Region,
    State,
    Stop,
    TokenLogprob,
    Unit,
)
from .sampling import Sampling


def _only(*values: Any) -> Meta:
    return Meta(extra_json_schema={"enum": [*values, None]})


_Ignored = Annotated[Any, Meta(description="Ignored.")]
_Constrain = Annotated[
    bool, Meta(description="Let a detect or segment answer be nothing but records with labels out of the prompt.")
]
_Image = Annotated[
    str, Meta(description="A data URI in base64, an http(s) address (--allow-urls) or a file (--allow-files).")
]


# --- requests -----------------------------------------------------------------------------------------


class ImageUrl(Struct):
    """A picture, as OpenAI names it."""

    url: _Image
    detail: _Ignored = None


class TextPart(Struct, tag_field="type", tag="text"):
    """Text of a message."""

    text: str


class ImagePart(Struct, tag_field="type", tag="image_url"):
    """A picture of a message."""

    image_url: ImageUrl


class UserMessage(Struct, tag_field="role", tag="user"):
    """The last one's text is the prompt; its pictures are asked about, or an earlier one's if it has none."""

    content: str | Annotated[list[TextPart | ImagePart], Meta(min_length=1)]


class SystemMessage(Struct, tag_field="role", tag="system"):
    """Ignored."""


class DeveloperMessage(Struct, tag_field="role", tag="developer"):
    """Ignored."""


class AssistantMessage(Struct, tag_field="role", tag="assistant"):
    """Ignored."""


class ToolMessage(Struct, tag_field="role", tag="tool"):
    """Ignored."""


class FunctionMessage(Struct, tag_field="role", tag="function"):
    """Ignored."""


Message = UserMessage | SystemMessage | DeveloperMessage | AssistantMessage | ToolMessage | FunctionMessage


class StreamOptions(Struct, forbid_unknown_fields=True):
    """Only together with `stream`."""

    include_usage: Annotated[bool, Meta(description="Send the usage as the last event.")] = False
    include_obfuscation: _Ignored = None


class ChatRequest(Sampling, forbid_unknown_fields=True, kw_only=True):
    """OpenAI's parameters that would change the answer in ways that are not built may only have the values with which
    they do not. null is as good as absent."""

    model: str = ""
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | UnsetType = UNSET
    regions: Annotated[
        bool, Meta(description="Add boxes and masks as message.regions, or delta.regions; not in OpenAI's protocol.")
    ] = False
    constrain: _Constrain = False
    n: Annotated[Any, _only(1)] = None
    stop: Stop = ()  # type: ignore[assignment]  # msgspec wants a default that cannot be changed
    tools: Annotated[Any, _only([])] = None
    tool_choice: Annotated[Any, _only("none", "auto")] = None
    functions: Annotated[Any, _only([])] = None
    function_call: Annotated[Any, _only("none", "auto")] = None
    response_format: Annotated[Any, _only({"type": "text"})] = None
    logprobs: Annotated[bool, Meta(description="Add the log-probability of each token.")] = False
    top_logprobs: Annotated[
        int, Meta(ge=0, le=MAX_ALTERNATIVES, description="And of so many of the likeliest tokens at each place.")
    ] = 0
    logit_bias: Annotated[Any, _only({})] = None
    frequency_penalty: Annotated[Any, _only(0)] = None
    presence_penalty: Annotated[Any, _only(0)] = None
    modalities: Annotated[Any, _only(["text"])] = None
    audio: Annotated[Any, _only()] = None
    prediction: Annotated[Any, _only()] = None
    web_search_options: Annotated[Any, _only()] = None
    metadata: _Ignored = None
    parallel_tool_calls: _Ignored = None
    prompt_cache_key: _Ignored = None
    prompt_cache_retention: _Ignored = None
    reasoning_effort: _Ignored = None
    safety_identifier: _Ignored = None
    service_tier: _Ignored = None
    store: _Ignored = None
    user: _Ignored = None
    verbosity: _Ignored = None


NEUTRAL: dict[str, list[Any]] = {
    name: meta.extra_json_schema["enum"]
    for name, hint in get_type_hints(ChatRequest, include_extras=True).items()
    for meta in getattr(hint, "__metadata__", ())
    if meta.extra_json_schema and "enum" in meta.extra_json_schema
}
"""OpenAI's parameters that would change the answer, and the values with which they do not (None: not given)."""


class RegionsRequest(Sampling, forbid_unknown_fields=True, kw_only=True):
    """The pictures are image or images. null is as good as absent."""

    model: str = ""
    prompt: str
    image: _Image | UnsetType = UNSET
    images: Annotated[list[_Image], Meta(min_length=1)] | UnsetType = UNSET
    scores: Annotated[bool, Meta(description="Give regions a score.")] = False
    min_score: Annotated[Unit, Meta(description="Leave out regions below.")] | UnsetType = UNSET
    dedup_iou: Annotated[Unit, Meta(description="Leave out regions that overlap a better one more.")] | UnsetType = (
        UNSET
    )
    max_regions: Annotated[int, Meta(ge=1, le=1_000_000)] | UnsetType = UNSET
    constrain: _Constrain = False


# --- answers ------------------------------------------------------------------------------------------


class ErrorObject(Struct):
    """OpenAI's form of an error."""

    message: Annotated[str, Meta(description="For people; may change.")]
    type: str
    param: Annotated[str | None, Meta(description="The field of the request that is wrong.")]
    code: str


class Error(Struct):
    """In place of an answer."""

    error: ErrorObject


class Health(Struct):
    """Whether the server answers."""

    status: State


class Model(Struct):
    """The model; what is known of it once it is loaded."""

    id: str
    created: int
    owned_by: str
    object: Literal["model"] = "model"
    model_type: ModelType | UnsetType = UNSET
    image_size: Positive | UnsetType = UNSET
    image_tokens: Positive | UnsetType = UNSET
    dtype: Dtype | UnsetType = UNSET
    device: Device | UnsetType = UNSET


class Models(Struct):
    """A list of one."""

    data: list[Model]
    object: Literal["list"] = "list"


class Usage(Struct):
    """Picture rows count as prompt tokens, the token that ends an answer as one of it."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class AnswerMessage(Struct):
    """The text of an answer, and its regions if the request asked for them."""

    content: str
    regions: list[Region] | UnsetType = UNSET
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Logprobs(Struct):
    """Of the tokens of an answer, without the one that ends it."""

    content: list[TokenLogprob]
    refusal: None = None


class Choice(Struct):
    """The answer; there is one only."""

    message: AnswerMessage
    finish_reason: FinishReason
    index: Literal[0] = 0
    logprobs: Logprobs | None = None


class ChatCompletion(Struct):
    """An answer in OpenAI's form."""

    id: str
    created: int
    model: str
    choices: Annotated[list[Choice], Meta(min_length=1, max_length=1)]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class Regions(Struct):
    """An answer as boxes and masks."""

    model: str
    width: Annotated[int, Meta(ge=1, description="Of the first picture, in pixels.")]
    height: Positive
    text: str
    regions: list[Region]
    malformed: list[Malformed]
    finish_reason: FinishReason
    usage: Usage
    object: Literal["regions"] = "regions"
