"""Every request and answer of the HTTP interface. `openapi.json` is generated from these structs
(`python -m tools.write_schemas`), and requests are checked by them. The fields of a request that are null are left out
before (body.parse): null is as good as absent everywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
    TokenLogprob,
    Unit,
)
from .sampling import Sampling


def only(*values: Any) -> Meta:
    """A field that may only have these values, or be absent."""
    return Meta(extra_json_schema={"enum": [*values, None]})


Ignored = Annotated[Any, Meta(description="Ignored.")]
Constrain = Annotated[
    bool, Meta(description="Let a detect or segment answer be nothing but records with labels out of the prompt.")
]
_Image = Annotated[
    str, Meta(description="A data URI in base64, an http(s) address (--allow-urls) or a file (--allow-files).")
]


# --- requests -----------------------------------------------------------------------------------------


class ImageUrl(Struct):
    """A picture, as OpenAI names it."""

    url: _Image
    detail: Ignored = None


class TextPart(Struct, tag_field="type", tag="text"):
    """Text of a message."""

    text: str


class ImagePart(Struct, tag_field="type", tag="image_url"):
    """A picture of a message."""

    image_url: ImageUrl | _Image


class InputTextPart(Struct, tag_field="type", tag="input_text"):
    """The same in /v1/responses."""

    text: str


class InputImagePart(Struct, tag_field="type", tag="input_image"):
    """A picture of a message, as /v1/responses calls it."""

    image_url: _Image
    detail: Ignored = None


Part = TextPart | ImagePart | InputTextPart | InputImagePart


class UserMessage(Struct, tag_field="role", tag="user"):
    """The prompt is the text of the last one that has any; the pictures are those of the last one that has any."""

    content: str | Annotated[list[Part], Meta(min_length=1)]


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


class StreamOptions(Struct):
    """Only together with `stream`."""

    include_usage: Annotated[bool, Meta(description="Send the usage as the last event.")] = False
    include_obfuscation: Ignored = None


class ChatRequest(Sampling, kw_only=True):
    """Parameters of OpenAI's that are not built may only have values with which they change nothing. Unknown ones are
    ignored, and named in the header X-Ignored-Parameters. null is as good as absent."""

    model: str = ""
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool = False
    stream_options: StreamOptions | UnsetType = UNSET
    regions: Annotated[
        bool, Meta(description="Add boxes and masks as message.regions, or delta.regions; not in OpenAI's protocol.")
    ] = False
    logprobs: Annotated[bool, Meta(description="Add the log-probability of each token.")] = False
    top_logprobs: Annotated[
        int, Meta(ge=0, le=MAX_ALTERNATIVES, description="And of so many of the likeliest tokens at each place.")
    ] = 0
    constrain: Constrain = False
    n: Annotated[Any, only(1)] = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    response_format: Annotated[Any, only({"type": "text"})] = None
    logit_bias: Annotated[Any, only({})] = None
    frequency_penalty: Annotated[Any, only(0)] = None
    presence_penalty: Annotated[Any, only(0)] = None
    modalities: Annotated[Any, only(["text"])] = None
    audio: Annotated[Any, only()] = None
    guided_json: Annotated[Any, only()] = None
    guided_regex: Annotated[Any, only()] = None
    guided_choice: Annotated[Any, only()] = None
    guided_grammar: Annotated[Any, only()] = None
    structured_outputs: Annotated[Any, only()] = None
    grammar: Annotated[Any, only()] = None
    prediction: Annotated[Any, only()] = None
    web_search_options: Annotated[Any, only()] = None
    metadata: Ignored = None
    parallel_tool_calls: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    reasoning_effort: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    user: Ignored = None
    verbosity: Ignored = None


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
    constrain: Constrain = False


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
    """Image tokens count as prompt tokens, and the token that ends an answer as one of the answer's."""

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
    """Log-probabilities of the tokens of an answer, without the one that ends it."""

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
