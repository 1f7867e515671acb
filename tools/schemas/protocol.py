"""protocol.schema.json: the messages of `pg-mlx worker`."""

from __future__ import annotations

import re
from typing import get_args

from pg_mlx.serving.worker import schemas

from .json_schema import Json, definitions, replaced, schema_of

WHERE = "#/$defs/"


def document() -> Json:
    """The names of the definitions are part of the promise: client_TYPE and worker_TYPE, id, picture, region, model."""
    sides = {"client": get_args(schemas.Client), "worker": get_args(schemas.Worker)}
    found = definitions([kind for kinds in sides.values() for kind in kinds], WHERE, _snake)
    found["picture"] |= {"minProperties": 1, "maxProperties": 1}  # which its __post_init__ checks
    identity = schema_of(schemas.Id)
    unions = {
        side: {"oneOf": [{"$ref": WHERE + _snake(kind.__name__)} for kind in kinds]} for side, kinds in sides.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The protocol of `pg-mlx worker`, version 1",
        "description": "A line from the client is a `client` message, a line from the worker a `worker` message.",
        "oneOf": [{"$ref": WHERE + side} for side in sides],
        "$defs": {**unions, "id": identity, **replaced(found, identity, {"$ref": WHERE + "id"})},
    }


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
