"""Writes the documents of the two interfaces, `openapi.json` and `protocol.schema.json`, from the structs that describe
them: `python -m tools.write_schemas`. A test holds the committed files against what this makes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import msgspec

from pg_mlx.serving.http import openapi
from pg_mlx.serving.worker import schemas as worker

ROOT = Path(__file__).parents[1]
Json = dict[str, Any]


def components(types: Iterable[Any], reference: str, named: Callable[[str], str] = lambda name: name) -> dict[str, Json]:
    """JSON Schema (2020-12) of structs and of all that they hold, by name. reference: where they will stand, as
    "#/$defs/". named: the name of each by that of its class."""
    _, found = msgspec.json.schema_components(types, ref_template=reference + "{name}")
    made = {name: _tidy(schema, lambda old: reference + named(old.rpartition("/")[2])) for name, schema in found.items()}
    return {named(name): made[name] for name in sorted(made)}


def _tidy(schema: Any, renamed: Callable[[str], str]) -> Any:
    """Without what msgspec adds to say nothing (titles, discriminators), and a single value as `const`."""
    if isinstance(schema, list):
        return [_tidy(item, renamed) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {}
    for key, value in schema.items():
        if key == "enum":
            only = value[0] if len(value) == 1 and value[0] is not None else None
            tidy |= {"enum": value} if only is None else {"const": only}
        elif key == "$ref":
            tidy[key] = renamed(value)
        elif key == "properties":
            tidy[key] = {name: _tidy(item, renamed) for name, item in value.items()}
        elif key == "description":
            tidy[key] = " ".join(value.split())
        elif key == "default":
            tidy[key] = value
        elif key not in ("title", "discriminator"):
            tidy[key] = _tidy(value, renamed)
    return tidy


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def protocol() -> Json:
    """protocol.schema.json. The names of its definitions are part of the promise: client_TYPE, worker_TYPE."""
    where = "#/$defs/"
    client, sent = get_args(worker.Client), get_args(worker.Worker)
    found = components([*client, *sent], where, _snake)
    found["picture"] |= {"minProperties": 1, "maxProperties": 1}
    unions = {
        side: {"oneOf": [{"$ref": where + _snake(kind.__name__)} for kind in kinds]}
        for side, kinds in (("client", client), ("worker", sent))
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The protocol of `pg-mlx worker`, version 1",
        "description": "A line from the client is a `client` message, a line from the worker a `worker` message.",
        "oneOf": [{"$ref": where + side} for side in unions],
        "$defs": {**unions, **found},
    }


def documents() -> dict[Path, str]:
    """The text of each document, by its path in the repository."""
    made = {
        "pg_mlx/serving/worker/protocol.schema.json": protocol(),
        "pg_mlx/serving/http/openapi.json": openapi.document(components),
    }
    return {ROOT / path: json.dumps(document, indent=1) + "\n" for path, document in made.items()}


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
