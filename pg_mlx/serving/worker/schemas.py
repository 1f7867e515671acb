"""Every message of the protocol, in both directions. `protocol.schema.json` is generated from these structs
(`python -m tools.write_schemas`), and the worker judges by them what it reads. Loads no MLX: the supervisor uses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, to_builtins

from ..error_codes import ERROR_CODES
from ..structs import (
    MAX_ALTERNATIVES,
    AnswerStats,
    ContextSize,
    Count,
    Dtype,
    FinishReason,
    Invalid,
    Malformed,
    Model,
    NgramSize,
    Penalty,
    Positive,
    Region,
    Seconds,
    State,
    Stop,
    TokenLogprob,
    UInt64,
    Unit,
    convert,
)

MAX_TOKENS = 8192
"""As generation.sampling has it, which loads MLX."""
_SAFE = 2**53
"""Whole numbers up to this one are exact in every client's language."""

Whole = Annotated[int, Meta(ge=0, le=_SAFE)]
Path = Annotated[str, Meta(min_length=1, max_length=4096)]
Id = Annotated[
    Annotated[str, Meta(min_length=1, max_length=64)] | Whole,
    Meta(description="Chosen by the client; not in use by a request that is not answered yet."),
]
Size = Annotated[
    Annotated[str, Meta(min_length=1, max_length=64)] | Annotated[int, Meta(ge=1, le=_SAFE)],
    Meta(description='Bytes, as a number or as text ("8GB").'),
]


class Picture(Struct, forbid_unknown_fields=True):
    """Exactly one of: a file that the worker reads, a file in base64, or the length of the frame that holds it."""

    path: Path | UnsetType = UNSET
    base64: str | UnsetType = UNSET
    bytes: Whole | UnsetType = UNSET

    def __post_init__(self) -> None:
        if (self.path, self.base64, self.bytes).count(UNSET) != 2:
            raise ValueError("must have exactly one of path, base64 and bytes")


# --- from the client ----------------------------------------------------------------------------------


class ClientMessage(Struct, forbid_unknown_fields=True, tag_field="type"):
    """What all messages of a client have."""

    id: Id


class ClientHello(ClientMessage, tag="hello"):
    """First message: the versions of this protocol that the client speaks."""

    protocols: Annotated[list[Annotated[int, Meta(ge=1, le=_SAFE)]], Meta(min_length=1, max_length=100)]


class ClientLoad(ClientMessage, tag="load"):
    """Load a checkpoint in place of the one there is; without `model` the bundled demo. What is not given is as the
    worker's flags say."""

    model: Path | UnsetType = UNSET
    revision: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType = UNSET
    adapter_path: Annotated[list[Path], Meta(max_length=16)] | UnsetType = UNSET
    dtype: Annotated[Dtype, Meta(description="Of activations and cache.")] | UnsetType = UNSET
    max_memory: Annotated[Size, Meta(description="Refuse a model that needs more.")] | UnsetType = UNSET
    memory: Annotated[Size, Meta(description="For float copies of weights, on a CPU.")] | UnsetType = UNSET
    layers_at_once: Annotated[int, Meta(ge=1, le=_SAFE, description="As the flag.")] | UnsetType = UNSET
    sliding_window: bool | UnsetType = UNSET
    mask_decoder: Path | UnsetType = UNSET
    tokenizer: Path | UnsetType = UNSET


class ClientGenerate(ClientMessage, tag="generate"):
    """Ask about pictures. For each picture in `bytes`, in order, a frame of that length follows the line."""

    prompt: str
    images: Annotated[list[Picture], Meta(min_length=1)]
    max_tokens: Annotated[int, Meta(ge=1, le=MAX_TOKENS)] | UnsetType = UNSET
    temperature: Annotated[float, Meta(ge=0)] | UnsetType = UNSET
    top_p: Annotated[float, Meta(gt=0, le=1)] | UnsetType = UNSET
    top_k: Whole | UnsetType = UNSET
    min_p: Unit | UnsetType = UNSET
    seed: UInt64 | UnsetType = UNSET
    stop: Stop | UnsetType = UNSET
    repetition_penalty: Penalty | UnsetType = UNSET
    repetition_context_size: ContextSize | UnsetType = UNSET
    no_repeat_ngram_size: NgramSize | UnsetType = UNSET
    logprobs: (
        Annotated[
            bool | Annotated[int, Meta(ge=0, le=MAX_ALTERNATIVES)],
            Meta(description="Report each token's, with so many alternatives (true: 0), and give regions a score."),
        ]
        | UnsetType
    ) = UNSET
    deadline_s: Annotated[float, Meta(gt=0, description="Seconds from now.")] | UnsetType = UNSET
    constrain: Annotated[bool, Meta(description="Only records with labels out of the prompt.")] | UnsetType = UNSET
    max_regions: Annotated[Whole, Meta(description="With `constrain`: end after so many.")] | UnsetType = UNSET
    stream: Annotated[bool, Meta(description="false: no `text` and `region` messages.")] = True


class ClientCancel(ClientMessage, tag="cancel"):
    """End a generate request."""

    request: Id


class ClientStats(ClientMessage, tag="stats"):
    """Ask for figures."""


class ClientUnload(ClientMessage, tag="unload"):
    """Free the model, once what was accepted is answered."""


class ClientShutdown(ClientMessage, tag="shutdown"):
    """Finish what was accepted, refuse the rest, end the process."""


Client = ClientHello | ClientLoad | ClientGenerate | ClientCancel | ClientStats | ClientUnload | ClientShutdown


# --- from the worker ----------------------------------------------------------------------------------


class WorkerMessage(Struct, forbid_unknown_fields=True, tag_field="type"):
    """What all messages of a worker have, but for errors of which nobody knows the request."""

    id: Id


class Limits(Struct, forbid_unknown_fields=True):
    """What the worker takes at most."""

    line_bytes: Positive
    batch_size: Positive
    queue: Positive
    pictures: Positive
    picture_bytes: Positive
    prompt_characters: Positive
    prefix_tokens: Positive


class Capabilities(Struct, forbid_unknown_fields=True):
    """What the worker understands."""

    commands: list[str]
    pictures: list[Literal["path", "base64", "bytes"]]
    limits: Limits


class WorkerHello(WorkerMessage, tag="hello"):
    """Answer to hello."""

    protocol: Positive
    version: str
    capabilities: Capabilities


class WorkerProgress(WorkerMessage, tag="progress"):
    """A load is under way."""

    stage: Literal["fetch", "weights", "warm-up"]
    done: Count
    of: Count


class WorkerLoaded(WorkerMessage, tag="loaded"):
    """Answer to load."""

    model: Model


class WorkerText(WorkerMessage, tag="text"):
    """More of an answer."""

    text: Annotated[str, Meta(min_length=1)]


class WorkerRegion(WorkerMessage, tag="region"):
    """A region that has become complete."""

    region: Region


class WorkerDone(WorkerMessage, tag="done"):
    """Answer to generate."""

    text: str
    token_ids: list[Count]
    finish_reason: FinishReason
    regions: list[Region]
    malformed: list[Malformed]
    width: Annotated[int, Meta(ge=1, description="Of the first picture, in pixels.")]
    height: Positive
    stats: AnswerStats
    logprobs: Annotated[list[TokenLogprob], Meta(description="Of token_ids, if asked for.")] | UnsetType = UNSET


class WorkerCancelled(WorkerMessage, tag="cancelled"):
    """Answer to cancel: whether such a request was not answered yet. It then ends with the error `cancelled`, unless
    its answer was on its way."""

    found: bool


class WorkerStats(WorkerMessage, tag="stats"):
    """Answer to stats, as of the last step."""

    state: State
    running: Count
    waiting: Count
    answered: Count
    failed: Annotated[dict[str, Positive], Meta(description="How often, by error code.")]
    uptime_s: Seconds
    active_bytes: Count
    peak_bytes: Count
    feature_bytes: Count
    model: Model | None


class WorkerUnloaded(WorkerMessage, tag="unloaded"):
    """Answer to unload."""


class WorkerBye(WorkerMessage, tag="bye"):
    """Answer to shutdown, and the last message."""


class WorkerError(Struct, forbid_unknown_fields=True, tag_field="type", tag="error"):
    """In place of the answer, which does not come. `id` is null where the request's could not be read."""

    id: Id | None
    code: Annotated[str, Meta(extra_json_schema={"enum": list(ERROR_CODES)})]
    message: str


Partial = WorkerProgress | WorkerText | WorkerRegion
Last = (
    WorkerHello | WorkerLoaded | WorkerDone | WorkerCancelled | WorkerStats | WorkerUnloaded | WorkerBye | WorkerError
)
"""After it nothing more comes for its request."""
Worker = Partial | Last


# --- reading and writing ------------------------------------------------------------------------------


def read(message: Mapping[str, Any]) -> Client:
    """A message of a client. Raises Invalid."""
    return convert(message, Client)  # type: ignore[arg-type]


def id_of(message: Mapping[str, Any]) -> str | int | None:
    """The id of a message of a client, whatever else is wrong with it; None if it has none, or none that is valid."""
    try:
        return convert(message.get("id"), Id)  # type: ignore[arg-type]
    except Invalid:
        return None


def plain(message: Worker) -> dict[str, Any]:
    """A message of the worker as a JSON object."""
    return to_builtins(message)
