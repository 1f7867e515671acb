"""JSON files of bounded size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError
from .regular import read_regular

MAX_JSON_BYTES = 8 << 20
"""Limit for an index or a configuration; a 28B model's index takes well under one MiB."""


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file of at most max_bytes. Raises InputError with one line."""
    try:
        return json.loads(read_regular(path, max_bytes))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
