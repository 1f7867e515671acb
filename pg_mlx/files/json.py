"""JSON files of bounded size."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError
from .regular import open_regular

MAX_JSON_BYTES = 64 << 20
"""Limit for an index or a vocabulary; a 28B model's index takes well under one MiB."""


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file of at most max_bytes. Raises InputError with one line."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise InputError(f"{path} is larger than {max_bytes >> 20} MiB, which no such file is")
            return json.loads(file.read())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
