"""Fields of OpenAI's requests that are ignored, and those that may only have values with which they change nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

from msgspec import Struct

from .body import check
from .errors import APIError
from .schemas import Ignored

HEADER = "X-Ignored-Parameters"
"""The header of an answer that names the fields of its request that were ignored."""
_NAMED = 20
"""How many of them it names."""

T = TypeVar("T", bound=Struct)


def check_lenient(value: Any, kind: type[T]) -> tuple[T, dict[str, str]]:
    """The request that a parsed body is, and the header that names what was ignored. Raises APIError, also for a field
    that would change the answer in a way that is not built."""
    asked = check(value, kind)
    assert isinstance(value, Mapping)
    for name, allowed in neutral(kind).items():
        if not any(_same(getattr(asked, name), other) for other in allowed):
            raise APIError(400, "unsupported_parameter", f"{name} is not supported by this model", name)
    names = sorted(name for name in value if name in ignored(kind) or name not in kind.__struct_fields__)
    shown = [name for name in names if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name)][:_NAMED]
    return asked, {HEADER: ", ".join(shown)} if shown else {}


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
