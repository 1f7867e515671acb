"""tokenizer.json, as far as it describes a tokenizer of Gemma's kind.

The format can hold much more: regular expressions that never end, tables over which the Rust library aborts the
process, texts that grow without bound. Nothing but what Gemma's has reaches that library: a BPE vocabulary with byte
fallback, added tokens, and spaces written as "▁".
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ..errors import InputError
from .added_tokens import LETTERS

_MAX_ADDED = 50_000
"""Added tokens; PaliGemma has 1,157. The library takes seconds for more than this."""
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_SPLIT_PATTERN = {"String": " "}


class _Bpe(msgspec.Struct):
    """The model. The library checks what is in its two tables."""

    vocab: msgspec.Raw
    merges: msgspec.Raw
    type: Literal["BPE"] = "BPE"
    dropout: float | None = None
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False


class _AddedToken(msgspec.Struct):
    """Text that is one token, whatever is around it."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class _File(msgspec.Struct):
    """What encodes text. Truncation, padding, post-processing and the decoder do not matter here, so they are not
    read."""

    model: _Bpe
    added_tokens: list[_AddedToken] = []  # msgspec copies it
    normalizer: Any = None
    pre_tokenizer: Any = None


def gemma_only(data: bytes) -> str:
    """A tokenizer.json for the library, with nothing but what Gemma's has, in which only LETTERS are special, so that
    other added tokens are found in text. Raises InputError for another kind of tokenizer."""
    try:
        file = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"it is no tokenizer.json of Gemma's kind: {error}") from None
    model, unlike = file.model, "which Gemma's tokenizer does not"
    if file.normalizer not in (_SPACES, {"type": "Sequence", "normalizers": [_SPACES]}):
        raise InputError(f"it does not write spaces as ▁, and nothing else, as Gemma's does: {_kind(file.normalizer)}")
    if not _splits_at_spaces(file.pre_tokenizer):
        raise InputError(f"it cuts text before its vocabulary does, {unlike}: {_kind(file.pre_tokenizer)}")
    if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        raise InputError(f"it has a dropout, prefix or suffix, {unlike}")
    if len(file.added_tokens) > _MAX_ADDED:
        raise InputError(f"it has {len(file.added_tokens)} added tokens, more than {_MAX_ADDED}")
    if not model.byte_fallback:
        raise InputError("it does not spell in bytes what has no piece, as Gemma's tokenizer does")
    for token in file.added_tokens:
        token.special = token.content in LETTERS
    whole = {"version": "1.0", "added_tokens": file.added_tokens, "normalizer": _SPACES, "model": model}
    return msgspec.json.encode(whole).decode()


def _splits_at_spaces(splitter: Any) -> bool:
    """Whether a pre_tokenizer finds nothing to cut: there is none, or it looks for spaces, which the normalizer has
    replaced."""
    return splitter is None or (
        isinstance(splitter, dict) and splitter.get("type") == "Split" and splitter.get("pattern") == _SPLIT_PATTERN
    )


def _kind(part: Any) -> str:
    """What a part is, for a message."""
    name = part.get("type") if isinstance(part, dict) else None
    return name if isinstance(name, str) and name.isalnum() and len(name) < 40 else "nothing" if part is None else "?"
