"""What is wrong with a message by `protocol.schema.json`, in one line. Of JSON Schema it knows what that file uses."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "protocol.schema.json"

Schema = Mapping[str, Any]


@functools.cache
def definitions() -> dict[str, Schema]:
    return json.loads(PATH.read_bytes())["$defs"]


def id_of(message: Mapping[str, Any]) -> str | int | None:
    """Whatever else is wrong with a message of a client; None if it has no id that an answer could bear."""
    identity = message.get("id")
    return identity if complaint({"type": "stats", "id": identity}) is None else None


def complaint(message: Any) -> str | None:
    """What is wrong with a message of a client, or None."""
    kind = message.get("type") if isinstance(message, dict) else None
    schema = definitions().get(f"client_{kind}") if isinstance(kind, str) else None
    return "it has no known type" if schema is None else _complaint(message, schema, "")


def _complaint(value: Any, schema: Schema, place: str) -> str | None:
    if "$ref" in schema:
        return _complaint(value, definitions()[schema["$ref"].rpartition("/")[2]], place)
    if "oneOf" in schema:
        found = [_complaint(value, one, place) for one in schema["oneOf"]]
        return None if found.count(None) == 1 else f"{place} is none of the {len(found)} forms it may have"
    if "const" in schema and value != schema["const"]:
        return f"{place} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{place} is none of {', '.join(schema['enum'])}"
    kind = schema.get("type")
    if kind is not None and not _KINDS[kind](value):
        return f"{place or 'the message'} is no {kind}"
    if kind == "object":
        return _object(value, schema, place)
    if kind == "array":
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            return f"{place} has {len(value)} items"
        items = (_complaint(item, schema["items"], f"{place}[{index}]") for index, item in enumerate(value))
        return next(filter(None, items), None)
    if kind == "string" and not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return f"{place} has {len(value)} characters"
    if kind in ("integer", "number") and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and value > schema.get("exclusiveMinimum", value - 1)
    ):
        return f"{place} is out of range"
    return None


def _object(value: dict[str, Any], schema: Schema, place: str) -> str | None:
    properties = schema["properties"]
    if missing := [name for name in schema["required"] if name not in value]:
        return f"{place or 'the message'} lacks {missing[0]}"
    for name, item in value.items():
        if name not in properties:
            return f"{place or 'the message'} has an unknown field"
        if found := _complaint(item, properties[name], f"{place}.{name}".removeprefix(".")):
            return found
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_KINDS = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": _is_number,
    "integer": lambda value: _is_number(value) and value == int(value),
}
