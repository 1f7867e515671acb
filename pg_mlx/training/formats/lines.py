"""Files of training data: bounded, UTF-8 with or without a byte order mark, any line ends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files.regular import open_regular
from ..faults import Faults

MAX_FILE_BYTES = 2 << 30
"""Limit of an annotation file. COCO's largest takes under half a GiB."""
MAX_LINE_BYTES = 4 << 20
"""Limit of one line of a JSONL file, and of a text beside a picture."""


def visible(folder: Path) -> list[Path]:
    """What is in a folder, by name, without hidden files, such as those that macOS leaves on foreign disks."""
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]


def read_text(path: Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """The whole text, without a byte order mark. Raises InputError."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > max_bytes:
                raise InputError(f"{path} is larger than {max_bytes >> 20} MiB, which no such file is")
            data = file.read()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: it is not UTF-8 text: save the file as UTF-8") from None


def read_json_text(path: Path) -> Any:
    """The value of a JSON file. Raises InputError, with the line of the mistake."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: it is not valid JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: it is not valid JSON: {error}") from None


def json_lines(path: Path, faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of each line that is not blank. Lines that are no JSON object become faults."""
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                raise InputError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB, which no such file is")
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > MAX_LINE_BYTES:
                    faults.add(where, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
                    return
                if value := _object(line, where, faults, first=number == 1):
                    yield where, value
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _object(line: bytes, where: str, faults: Faults, first: bool) -> dict[str, Any] | None:
    """The JSON object of a line; None for a blank line, and for one that is a fault."""
    try:
        text = line.decode("utf-8-sig" if first else "utf-8").strip()
        if not text:
            return None
        value = json.loads(text)
    except UnicodeDecodeError:
        faults.add(where, "it is not UTF-8 text: save the file as UTF-8")
    except json.JSONDecodeError as error:
        faults.add(where, f"it is not valid JSON: {error.msg} (column {error.colno})")
    except (ValueError, RecursionError) as error:
        faults.add(where, f"it is not valid JSON: {error}")
    else:
        if isinstance(value, dict) and value:
            return value
        faults.add(where, f"the line is {str(value)[:40]!r}, but must be a JSON object with keys")
    return None
