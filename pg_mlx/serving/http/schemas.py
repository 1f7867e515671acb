"""Reading a JSON object, or a form, field by field. Whatever is wrong in it is a `APIError` that names the field."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import InputError
from ...generation import SamplingOptions
from ...generation.sampling import MAX_TOKENS
from .errors import APIError, bad_request


def parse(body: bytes) -> Any:
    """JSON as the standard has it: in UTF-8, without NaN. Raises APIError."""
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise bad_request("the body is nested too deep") from None
    except ValueError as error:  # malformed, not UTF-8, or a number of thousands of digits
        reason = str(error).partition(":")[0] if isinstance(error, json.JSONDecodeError) else "it is not UTF-8 text"
        raise bad_request(f"the body is no JSON: {reason}") from None


def _no_constant(name: str) -> float:
    raise json.JSONDecodeError(f"{name} is no number", "", 0)


class Fields:
    """The fields of an object. null is as good as absent. Those nobody has taken at the end are refused."""

    def __init__(self, value: Any, place: str = "", text: bool = False):
        """place: where it stands in the request. text: numbers and booleans are written as text, as in a form."""
        if not isinstance(value, dict):
            raise bad_request(f"{place or 'the body'} is no object", place or None)
        self._left: dict[str, Any] = {name: item for name, item in value.items() if item is not None}
        self._place, self._text = place, text

    def name(self, field: str) -> str:
        return f"{self._place}.{field}" if self._place else field

    def take(self, field: str) -> Any:
        return self._left.pop(field, None)

    def string(self, field: str, default: str | None = None) -> str:
        value = self.take(field)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise bad_request(f"{self.name(field)} must be a string", self.name(field))
        return value

    def boolean(self, field: str) -> bool:
        value = self._scalar(field)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise bad_request(f"{self.name(field)} must be true or false", self.name(field))
        return value

    def number(self, field: str, least: float = -math.inf, most: float = math.inf) -> float | None:
        value = self._scalar(field)
        if value is None:
            return None
        largest = sys.float_info.max  # JSON has whole numbers beyond it
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not max(least, -largest) <= value <= min(most, largest)
        ):
            span = f" from {least:g} to {most:g}" if math.isfinite(least) and math.isfinite(most) else ""
            raise bad_request(f"{self.name(field)} must be a number{span}", self.name(field))
        return value

    def integer(self, field: str, least: int = -(2**63), most: int = 2**64 - 1) -> int | None:
        value = self.number(field)
        if value is None:
            return None
        if value != int(value) or not least <= value <= most:
            raise bad_request(f"{self.name(field)} must be a whole number from {least} to {most}", self.name(field))
        return int(value)

    def items(self, field: str) -> Iterator[tuple[str, Any]]:
        """Of a list that is not empty: each item, and its place."""
        value = self.take(field)
        if not isinstance(value, list) or not value:
            raise bad_request(f"{self.name(field)} must be a list that is not empty", self.name(field))
        return ((f"{self.name(field)}[{index}]", item) for index, item in enumerate(value))

    def without(self, neutral: Mapping[str, tuple[Any, ...]], ignored: frozenset[str]) -> None:
        """Refuse what the model cannot do, unless it asks for nothing, and what nobody knows."""
        for field, value in self._left.items():
            if field in ignored or (field in neutral and any(_same(value, other) for other in neutral[field])):
                continue
            reason = "is not supported by this model" if field in neutral else "is unknown"
            raise APIError(400, "unsupported_parameter", f"{self.name(field)[:100]} {reason}", self.name(field)[:100])

    def _scalar(self, field: str) -> Any:
        value = self.take(field)
        if self._text and isinstance(value, str):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                return value
        return value


def _same(value: Any, other: Any) -> bool:
    """In JSON true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def sampling(fields: Fields) -> SamplingOptions:
    """Greedy unless told otherwise. Negative seeds, which OpenAI has, count from the top."""
    most = fields.integer("max_tokens", 1, MAX_TOKENS)
    newer = fields.integer("max_completion_tokens", 1, MAX_TOKENS)
    seed = fields.integer("seed")
    given = {
        "max_tokens": newer if newer is not None else most,
        "temperature": fields.number("temperature"),
        "top_p": fields.number("top_p"),
        "top_k": fields.integer("top_k", 0),
        "min_p": fields.number("min_p"),
        "seed": None if seed is None else seed % 2**64,
    }
    try:
        return SamplingOptions(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except InputError as error:
        raise bad_request(str(error), str(error).partition(" ")[0]) from None
