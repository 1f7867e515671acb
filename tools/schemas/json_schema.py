"""JSON Schema (2020-12) of msgspec structs, in one form whatever msgspec's version adds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

Json = dict[str, Any]


def definitions(structs: Iterable[Any], where: str, named: Callable[[str], str] = lambda name: name) -> dict[str, Json]:
    """The schemas of structs and of all structs that they hold, by name.

    where: at which they will stand in the document, as "#/$defs/". named: the name of each by that of its class.
    """
    _, found = msgspec.json.schema_components(structs, ref_template=where + "{name}")
    tidy = {
        named(name): _tidy(schema, lambda old: where + named(old.rpartition("/")[2])) for name, schema in found.items()
    }
    return dict(sorted(tidy.items()))


def schema_of(kind: Any) -> Json:
    """The schema of a type that holds no struct."""
    return _tidy(msgspec.json.schema(kind), str)


def _tidy(schema: Any, renamed: Callable[[str], str]) -> Any:
    """A schema without titles and discriminators, with one allowed value as `const`, and no default where the field may
    just be left out."""
    if isinstance(schema, list):
        return [_tidy(item, renamed) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy: Json = {}
    for key, value in sorted(schema.items(), key=lambda item: _ORDER.get(item[0], len(_ORDER))):
        if key == "enum" and len(value) == 1 and value[0] is not None:
            tidy["const"] = value[0]
        elif key in ("enum", "required"):
            tidy |= {key: value} if value else {}
        elif key == "$ref":
            tidy[key] = renamed(value)
        elif key == "description":
            tidy[key] = " ".join(value.split())
        elif key == "properties":
            tidy[key] = {name: _tidy(item, renamed) for name, item in value.items()}
        elif key == "default":
            tidy |= {} if value is None or value == "" else {key: value}
        elif key == "anyOf":  # null last: versions of msgspec differ
            tidy[key] = _tidy(sorted(value, key=lambda one: one == {"type": "null"}), renamed)
        elif key not in ("title", "discriminator"):
            tidy[key] = _tidy(value, renamed)
    return tidy


_ORDER = {key: place for place, key in enumerate(("$ref", "description", "type", "properties", "items", "required"))}


def replaced(schema: Any, old: Json, new: Json) -> Any:
    """A schema with `new` wherever `old` stands in it."""
    if schema == old:
        return new
    if isinstance(schema, list):
        return [replaced(item, old, new) for item in schema]
    return {key: replaced(item, old, new) for key, item in schema.items()} if isinstance(schema, dict) else schema
