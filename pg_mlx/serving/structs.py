"""What the HTTP and the worker messages share: how a value is checked against a msgspec Struct, and structs that both
send."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct

T = TypeVar("T")

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0)]
UInt64 = Annotated[int, Meta(ge=0, extra_json_schema={"maximum": 2**64 - 1})]
"""The upper bound is kept by strict_json: larger numbers are floats. (msgspec checks bounds up to 2^63.)"""
Dtype = Literal["float32", "bfloat16", "float16"]
ModelType = Literal["gemma", "gemma2"]
Device = Literal["gpu", "cpu"]
FinishReason = Literal["stop", "length"]
State = Literal["empty", "loading", "ready", "shutting_down", "broken"]
Unit = Annotated[float, Meta(ge=0, le=1)]
MAX_STOPS, MAX_STOP_CHARACTERS, MAX_ALTERNATIVES = 16, 1000, 20
"""As generation.sampling has them, which loads MLX."""
_Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stop = Annotated[
    _Stop | Annotated[list[_Stop], Meta(max_length=MAX_STOPS)],
    Meta(description="The answer ends before the first of these strings."),
]
Penalty = Annotated[float, Meta(gt=0, description="Above 1: tokens that were there become less likely; 1 is off.")]
ContextSize = Annotated[int, Meta(ge=0, le=2**53, description="Among so many last tokens; 0 is all.")]
NgramSize = Annotated[int, Meta(ge=0, le=2**53, description="So many tokens in a row come only once; 0 is off.")]


class Mask(Struct, forbid_unknown_fields=True):
    """Run lengths in COCO's form, over the whole first picture."""

    size: Annotated[list[Positive], Meta(min_length=2, max_length=2, description="Height and width.")]
    counts: str


class Region(Struct, forbid_unknown_fields=True):
    """A box, and a mask if the prompt asked for one."""

    label: str
    box: Annotated[
        list[float],
        Meta(min_length=4, max_length=4, description="x0, y0, x1, y1 in pixels of the first picture."),
    ]
    box_normalized: Annotated[list[Unit], Meta(min_length=4, max_length=4, description="The same from 0 to 1.")]
    score: Annotated[Unit | None, Meta(description="null where no scores were asked for.")]
    mask: Mask | None


class Alternative(Struct, forbid_unknown_fields=True):
    """A token that could have stood here. bytes is null for one that is no text, as <eos>."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Meta(ge=0, le=255)]] | None


class TokenLogprob(Struct, forbid_unknown_fields=True):
    """A token of an answer in OpenAI's form. logprob is a natural logarithm, before penalties, temperature and
    truncation; 0 for a token that a constrained answer had to have."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Meta(ge=0, le=255)]] | None
    top_logprobs: list[Alternative]


class Malformed(Struct, forbid_unknown_fields=True):
    """A part of an answer that looks like a region and is none."""

    text: str
    reason: str


class Model(Struct, forbid_unknown_fields=True):
    """What is loaded."""

    model: str
    model_type: ModelType
    image_size: Annotated[int, Meta(ge=1, description="Side in pixels to which pictures are brought.")]
    image_tokens: Annotated[int, Meta(ge=1, description="Of one picture.")]
    dtype: Dtype
    device: Device
    load_s: Seconds
    weight_bytes: Count


class AnswerStats(Struct, forbid_unknown_fields=True):
    """Times in seconds, and what was read and written."""

    load_s: Seconds
    vision_s: Seconds
    prefill_s: Seconds
    time_to_first_token_s: Seconds
    prompt_tokens: Count
    prefill_tps: Seconds
    decode_tokens: Count
    decode_tps: Seconds
    peak_memory_bytes: Count
    queue_s: Seconds


class Invalid(Exception):
    """A value that does not have the form it must have.

    place: where it is, as "messages[0].content"; "" for the whole. reason: what is wrong, to be read after the place;
    it never repeats a value. unknown: whether there is no field of the name that the place ends with.
    """

    def __init__(self, place: str, reason: str, unknown: bool = False):
        super().__init__(f"{place or 'it'} {reason}")
        self.place, self.reason, self.unknown = place, reason, unknown


def convert(value: Any, kind: type[T]) -> T:
    """A value as strict_json reads it, as a struct or another type that msgspec knows. Raises Invalid."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except UnicodeEncodeError as error:  # half a surrogate pair, as a name or as one of several words
        raise Invalid(error.object[:100], "is not Unicode text") from None


def given(struct: Struct, *names: str) -> dict[str, Any]:
    """Those of these fields that are set."""
    return {name: value for name in names if (value := getattr(struct, name)) is not UNSET}


_AT = re.compile(r"(.*?)(?: - at `(?:key in )?\$\.?([^`]*)`)?", re.DOTALL)
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)


def _invalid(message: str) -> Invalid:
    """msgspec's words, without the values that some of them repeat."""
    match = _AT.fullmatch(message)
    assert match is not None
    what, place = match[1], match[2] or ""
    if field := _FIELD.fullmatch(what):
        unknown = field[1] == "contains unknown"
        name = ".".join(filter(None, (place, field[2][:100])))
        return Invalid(name, "is unknown" if unknown else "is missing", unknown)
    if what.startswith("Expected "):
        what = re.sub(r"`([^`]*)`", lambda found: " or ".join(_WORDS.get(n, n) for n in found[1].split(" | ")), what)
        return Invalid(place, what.replace("Expected ", "must be ", 1).replace(", got ", ", not "))
    if what.startswith("Invalid "):
        return Invalid(place, "is none of the values it may have")
    return Invalid(place, what)
