"""The request and the answer of /v1/responses, in OpenAI's form."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from ..structs import MAX_ALTERNATIVES, Count, TokenLogprob
from .sampling import Sampling
from .schemas import Constrain, Ignored, Message, only

_only_false = Meta(extra_json_schema={"type": ["boolean", "null"], "enum": [False, None]})
"""Not only(False): to Python that is the same as only(0), and `Annotated` would give both the same object."""
_TEXTS = [
    {**form, **verbosity}
    for form in ({"format": {"type": "text"}}, {})
    for verbosity in ({}, *({"verbosity": much} for much in ("low", "medium", "high")))
]
"""Plain text; the verbosity is ignored."""
LOGPROBS = "message.output_text.logprobs"
"""What `include` calls the log-probabilities of an answer's tokens."""


class ResponsesRequest(Sampling, kw_only=True):
    """As ChatRequest. Nothing is stored, so there is no earlier response to go on from."""

    model: str = ""
    input: str | Annotated[list[Message], Meta(min_length=1)]
    max_output_tokens: Annotated[int, Meta(ge=-1, description="In place of max_tokens.")] | UnsetType = UNSET
    stream: bool = False
    constrain: Constrain = False
    text: Annotated[Any, only(*_TEXTS)] = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    previous_response_id: Annotated[Any, only()] = None
    conversation: Annotated[Any, only()] = None
    prompt: Annotated[Any, only()] = None
    background: Annotated[Any, _only_false] = None
    top_logprobs: Annotated[
        int, Meta(ge=0, le=MAX_ALTERNATIVES, description="As in chat; more than 0 includes the log-probabilities.")
    ] = 0
    include: Annotated[list[str], Meta(description=f"{LOGPROBS}; others are ignored.")] = ()  # type: ignore[assignment]
    instructions: Ignored = None
    max_tool_calls: Ignored = None
    metadata: Ignored = None
    parallel_tool_calls: Ignored = None
    prompt_cache_key: Ignored = None
    reasoning: Ignored = None
    safety_identifier: Ignored = None
    service_tier: Ignored = None
    store: Ignored = None
    stream_options: Ignored = None
    truncation: Ignored = None
    user: Ignored = None

    def __post_init__(self) -> None:
        """max_output_tokens is the name that this address has for max_completion_tokens."""
        if self.max_output_tokens is not UNSET:
            self.max_completion_tokens = self.max_output_tokens

    @property
    def logprobs(self) -> bool:
        """Whether the answer has the log-probabilities of its tokens."""
        return self.top_logprobs > 0 or LOGPROBS in self.include


class OutputText(Struct):
    """The text of an answer."""

    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] = []
    logprobs: list[TokenLogprob] = []
    type: Literal["output_text"] = "output_text"


class OutputMessage(Struct):
    """The message of an answer; there is one only."""

    id: str
    content: Annotated[list[OutputText], Meta(max_length=1)]
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] = "assistant"
    type: Literal["message"] = "message"


class CachedTokens(Struct, frozen=True):
    """None is ever reused."""

    cached_tokens: Literal[0] = 0


class ReasoningTokens(Struct, frozen=True):
    """There is no reasoning."""

    reasoning_tokens: Literal[0] = 0


class OutputUsage(Struct):
    """As Usage."""

    input_tokens: Count
    output_tokens: Count
    total_tokens: Count
    input_tokens_details: CachedTokens = CachedTokens()
    output_tokens_details: ReasoningTokens = ReasoningTokens()


class Incomplete(Struct):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ModelResponse(Struct, kw_only=True):
    """An answer, or the beginning of one."""

    id: str
    created_at: Count
    model: str
    status: Literal["in_progress", "completed", "incomplete"]
    output: Annotated[list[OutputMessage], Meta(max_length=1)]
    usage: OutputUsage | None
    incomplete_details: Incomplete | None
    max_output_tokens: int
    temperature: float
    top_p: float
    object: Literal["response"] = "response"
    error: None = None
    instructions: None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = False
    previous_response_id: None = None
    store: bool = False
    tool_choice: Literal["none"] = "none"
    tools: Annotated[list[Any], Meta(max_length=0)] = []
    truncation: Literal["disabled"] = "disabled"
