"""Writes `openapi.json`, `protocol.schema.json` and `report.schema.json`, which are made from structs of pg_mlx:
`python -m tools.write_schemas`. A test compares the committed files with what this makes."""

from __future__ import annotations

import json
from pathlib import Path

from tools.schemas import openapi, protocol, report

ROOT = Path(__file__).parents[1]


def documents() -> dict[Path, str]:
    """The text of each document, by its path in the repository."""
    made = {
        "pg_mlx/serving/http/openapi.json": openapi.document(),
        "pg_mlx/serving/worker/protocol.schema.json": protocol.document(),
        "docs/report.schema.json": report.document(),
    }
    return {ROOT / path: json.dumps(document, indent=1) + "\n" for path, document in made.items()}


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text)
        print(path.relative_to(ROOT))
