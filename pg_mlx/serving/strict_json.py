"""JSON from outside, read with one meaning for everything: what is ambiguous is refused. Only the standard library is
used, since clients import this."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


class BadJson(Exception):
    """The bytes are not JSON that is accepted here; the message says why, in one line."""


def loads(data: bytes, nulls: bool = True) -> Any:
    """The value of JSON in UTF-8. nulls: False leaves out the fields of objects that are null.

    JSON knows one kind of number, so 5.0 is the int 5: a number is an int if it is whole and fits in 64 bits, signed or
    unsigned, and a float otherwise. Raises BadJson for malformed or deeply nested JSON, NaN, numbers that no float can
    hold, and names that are given twice.
    """
    try:
        return json.loads(
            data.decode(),
            parse_constant=_refuse_constant,
            parse_float=_number,
            parse_int=_number_of_digits,
            object_pairs_hook=_object if nulls else _object_without_nulls,
        )
    except RecursionError:
        raise BadJson("it is nested too deep") from None
    except UnicodeDecodeError:
        raise BadJson("it is not UTF-8 text") from None
    except ValueError as error:
        raise BadJson(" ".join(str(error).split())) from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _number(text: str) -> int | float:
    value = _finite(text)
    return int(value) if -(2**63) <= value < 2**64 and value.is_integer() else value


def _number_of_digits(digits: str) -> int | float:
    if len(digits) <= 20 and -(2**63) <= (value := int(digits)) < 2**64:
        return value
    return _finite(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object has the same name twice")
    return fields


def _object_without_nulls(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in _object(pairs).items() if value is not None}
