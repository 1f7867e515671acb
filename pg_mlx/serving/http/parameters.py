"""Fields of OpenAI's requests that are ignored, and those that may only have values with which they change nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from msgspec import Struct

from .body import check
from .errors import APIError, bad_request
from .schemas import Ignored, Part

HEADER = "X-Ignored-Parameters"
"""The header of an answer that names the fields of its request that were ignored."""
_NAMED = 20
"""How many of them it names."""

T = TypeVar("T", bound=Struct)


def check_lenient(value: Any, kind: type[T], model: str) -> tuple[T, dict[str, str]]:
    """The request that a parsed body is, and the header that names what was ignored. Raises APIError, also for a field
    that would change the answer in a way that is not built.

    model: the name of the one that answers. A request for another one gets its answer all the same: many programs ask
    for a fixed name. The answer says which model gave it.
    """
    asked = _check(value, kind)
    for name, allowed in neutral(kind).items():
        if not any(_same(getattr(asked, name), other) for other in allowed):
            raise APIError(400, "unsupported_parameter", f"{name} {_remedy(allowed)}", name)
    names = sorted(name for name in value if name in ignored(kind) or name not in kind.__struct_fields__)
    if value.get("model", "") not in ("", model):
        names.append("model")
    shown = [name for name in names if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name)][:_NAMED]
    return asked, {HEADER: ", ".join(shown)} if shown else {}


def _check(value: Any, kind: type[T]) -> T:
    """As body.check; of a part of a message that is of no known type, the error names the types."""
    try:
        return check(value, kind)
    except APIError as error:
        if error.param and error.param.endswith("].type"):
            types = ", ".join(str(part.__struct_config__.tag) for part in get_args(Part))
            raise bad_request(f"{error.param} must be one of {types}", error.param) from None
        raise


def _remedy(allowed: Sequence[Any]) -> str:
    """What to send in place of a value that would change the answer."""
    value = next((value for value in allowed if value is not None), None)
    instead = "" if value is None else f", or send {json.dumps(value)}"
    return f"is not supported with this value: leave it out{instead}"


def neutral(kind: type[Struct]) -> dict[str, list[Any]]:
    """The fields that would change the answer, and the values with which they do not (None: not given)."""
    return {
        name: meta.extra_json_schema["enum"]
        for name, meta in _metas(kind)
        if meta.extra_json_schema and "enum" in meta.extra_json_schema
    }


def ignored(kind: type[Struct]) -> set[str]:
    """The fields that are known and ignored."""
    return {name for name, meta in _metas(kind) if meta in Ignored.__metadata__}


def _metas(kind: type[Struct]) -> list[tuple[str, Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return [(name, meta) for name, hint in hints.items() for meta in getattr(hint, "__metadata__", ())]


def _same(value: Any, other: Any) -> bool:
    """In JSON true is not 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
