"""The JSON Schema of what `pg-mlx doctor --report` writes."""

from __future__ import annotations

from pg_mlx.measure.report.structs import MacReport
from tools.schemas.json_schema import Json, definitions


def document() -> Json:
    """The schema, with that of the report at its top."""
    found = definitions([MacReport], "#/$defs/")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The report of pg-mlx doctor --report",
        **found.pop("MacReport"),
        "$defs": found,
    }
