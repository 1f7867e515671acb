"""JSON files of bounded size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError

MAX_JSON_BYTES = 64 << 20
"""Limit for a header or an index; a 28B model's takes well under one."""


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file of at most max_bytes. Raises InputError with one line."""
    try:
        if path.stat().st_size > max_bytes:
            raise InputError(f"{path} is larger than {max_bytes >> 20} MiB, which no such file is")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
