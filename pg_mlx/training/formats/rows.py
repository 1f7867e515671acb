"""JSONL with a row for each example: Roboflow's, big_vision's, and mlx-vlm's messages."""

from __future__ import annotations

import json
from typing import Any

from ...errors import InputError
from ...regions import RegionParser
from ...regions.prompt import RegionPrompt
from ..example import Example, LabelledObject
from ..faults import Faults
from .lines import json_lines
from .pictures import Pictures, picture_path
from .source import Contents, DataOptions, DataSource, Format, checked_prefix, checked_suffix

_ANSWERS = ("suffix", "label")
"""Keys of the answer: everybody's, and that of big_vision's template for own data."""


def _is_rows(source: DataSource) -> bool:
    return source.path.suffix.lower() in (".jsonl", ".ndjson") and source.path.is_file()


def _read(source: DataSource, options: DataOptions, pictures: Pictures, faults: Faults) -> Contents:
    folder = source.folder(options)
    rows: list[tuple[str, str, str, str]] = []
    for where, row in json_lines(source.path, faults):
        with faults.at(where):
            image, prefix, suffix = _of_messages(row) if "messages" in row else _of_keys(row, options)
            path = picture_path(image, folder)
            rows.append((where, path, checked_prefix(prefix, options), checked_suffix(suffix, options)))
    pictures.check(path for _, path, _, _ in rows)
    contents = Contents()
    for where, path, prefix, suffix in rows:
        with faults.at(where):
            contents.examples.append(text_example(path, prefix, suffix, pictures.size(path), where))
    return contents


def _of_keys(row: dict[str, Any], options: DataOptions) -> tuple[Any, Any, Any]:
    """image, prefix and suffix of a row with flat keys."""
    if "image" not in row:
        raise InputError(f"the row has no key image, only {_keys(row)}")
    prefix = row.get("prefix", options.prefix)
    if prefix is None:
        raise InputError(
            f"the row has no key prefix, only {_keys(row)}; --prefix (convert: --calibration-prompt) gives one to all"
        )
    answers = [row[key] for key in _ANSWERS if key in row]
    if not answers:
        raise InputError(f"the row has no key suffix, only {_keys(row)}")
    return row["image"], prefix, answers[0]


def _of_messages(row: dict[str, Any]) -> tuple[Any, Any, Any]:
    """image, prefix and suffix of a row with one question and one answer as chat messages."""
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise InputError("messages is not a list of objects with role and content")
    roles = [message.get("role") for message in messages]
    if roles != ["user", "assistant"]:
        shown = ", ".join(map(str, roles[:6])) or "no message"
        raise InputError(f"the messages are by {shown}; PaliGemma learns one of user and one of assistant")
    prefix, named = _content(messages[0])
    suffix, more = _content(messages[1])
    images = row.get("images", row.get("image", named))
    if more or not images:
        raise InputError("the row names no picture" if not images else "the assistant's message holds a picture")
    return images, prefix, suffix


def _content(message: dict[str, Any]) -> tuple[str, list[Any]]:
    """The text of a message, and the pictures that it names."""
    content = message.get("content")
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise InputError(f"the content of a message is {type(content).__name__}, but must be text or a list of parts")
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(part.get("text", part.get("content")))
        elif kind in ("image", "image_url"):
            named = part.get("image", part.get("image_url"))
            images += [named.get("url") if isinstance(named, dict) else named] if named else []
        else:
            raise InputError(f"a part of a message has type {kind!r}, but only text and image are read")
    if not all(isinstance(text, str) for text in texts):
        raise InputError("a part of a message has no text")
    return "".join(texts), images


def text_example(image: str, prefix: str, suffix: str, size: tuple[int, int], where: str) -> Example:
    """An example with its answer given. The boxes of a detect or segment answer are read, and must be sound.

    Raises InputError for a malformed record in such an answer.
    """
    if RegionPrompt.of(prefix) is None:
        return Example(image, prefix, suffix, image_size=size, where=where)
    parser = RegionParser(size)
    regions = [*parser.push(suffix), *parser.flush()]
    if parser.malformed:
        first = parser.malformed[0]
        raise InputError(f"suffix has the malformed record {first.text[:60]!r}: {first.reason}")
    if suffix.strip() and not regions:
        return Example(image, prefix, suffix, image_size=size, where=where)
    kind = "segment" if any(region.codes for region in regions) else prefix.split()[0]
    objects = tuple(LabelledObject(region.label, region.box) for region in regions)
    return Example(image, prefix, suffix, objects, kind, size, where)


def _keys(row: dict[str, Any]) -> str:
    return json.dumps(list(row)[:8], ensure_ascii=False)[:100]


ROWS = Format("JSONL rows", _is_rows, _read)
