"""Tokens that fine-tuning has added to Gemma's vocabulary, as tokenizer.json, tokenizer_config.json and
added_tokens.json list them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.json import read_json

IMAGE = "<image>"
CONTROL = ("<pad>", "<eos>", "<bos>")
LETTERS = (*CONTROL, "<unk>", IMAGE)
"""Tokens that text never contains: their names are read letter by letter, so that no text can end an answer."""

MAX_ID = 1 << 22
"""More than any vocabulary has."""

MAX_JSON_BYTES = 256 << 20
"""The largest tokenizer.json that is read; transformers writes 34 MB for PaliGemma's vocabulary."""

_HEAD_CHARACTERS = 1 << 20
_MAX_BYTES = 1 << 24
_ARRAY = re.compile(r'"added_tokens"\s*:\s*(?=\[)')


def added_in_json(path: Path) -> dict[str, int]:
    """The added tokens of a tokenizer.json, with their ids; none if it cannot be read.

    They stand at its beginning, so that the rest, some 12 MB, need not be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_HEAD_CHARACTERS)
            entries = _entries(text) or _entries(text + file.read(MAX_JSON_BYTES))
    except (OSError, ValueError):
        return {}
    return {entry["content"]: entry["id"] for entry in entries}


def added_in_list(path: Path) -> dict[str, int]:
    """The tokens of an added_tokens.json. Raises InputError for other content than ids by text."""
    found = read_json(path, _MAX_BYTES)
    if not isinstance(found, dict) or not all(
        token and type(token_id) is int and 0 <= token_id < MAX_ID for token, token_id in found.items()
    ):
        raise InputError(f"{path} does not hold token ids by text")
    return found


def added_in_config(path: Path) -> dict[str, int]:
    """The tokens in the `added_tokens_decoder` of a tokenizer_config.json; none without one. Raises InputError for
    other content than tokens by their ids."""
    config = read_json(path, _MAX_BYTES)
    if not isinstance(config, dict):
        raise InputError(f"{path} does not hold a JSON object")
    listed = config.get("added_tokens_decoder") or {}
    found: dict[str, int] = {}
    for token_id, entry in listed.items() if isinstance(listed, dict) else [("", None)]:
        token = entry.get("content") if isinstance(entry, dict) else None
        if not (re.fullmatch("[0-9]{1,7}", token_id) and int(token_id) < MAX_ID and isinstance(token, str) and token):
            raise InputError(f"{path}: added_tokens_decoder does not hold tokens by their ids")
        found[token] = int(token_id)
    return found


def _entries(text: str) -> list[dict[str, Any]]:
    """The entries of `added_tokens`, or none if they are not whole or not of this kind."""
    found = _ARRAY.search(text)
    try:
        entries, _ = json.JSONDecoder().raw_decode(text, found.end()) if found else ([], 0)
    except (ValueError, RecursionError):
        return []
    sound = isinstance(entries, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int
        for entry in entries
    )
    return entries if sound else []


class Splitter:
    """Finds added tokens in text, the longest first. tokens: their ids by text."""

    def __init__(self, tokens: dict[str, int]):
        self.ids = tokens
        self._pattern = re.compile("(" + "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) + ")")

    def split(self, text: str) -> Iterable[tuple[str, int | None]]:
        """Pieces of the text, each with its id if it is an added token."""
        for number, part in enumerate(self._pattern.split(text)):
            if part:
                yield part, self.ids[part] if number % 2 else None
