"""Making a tokenizer.json from a tokenizer.model, for sources that have only the latter, as archives from Kaggle.

Swift reads no tokenizer.model at all, and transformers (so mlx-vlm, too) only where protobuf is installed. The few
protobuf fields are read here because sentencepiece does not say which pieces are user-defined.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from ..errors import InputError
from ..processor.tokenizer import LOCATIONS, SEGMENTS

IMAGE = "<image>"
JSON_PER_MODEL_BYTE = 10
"""About how many bytes of tokenizer.json a byte of Gemma's tokenizer.model becomes, at most."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


class Piece(NamedTuple):
    """An entry of a SentencePiece vocabulary. kind: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE."""

    text: str
    score: float
    kind: int


def write_tokenizer_json(model: Path, target: Path, added: Mapping[str, int] | None = None) -> None:
    """Write the vocabulary of `model` as a tokenizer.json with the same pieces and ids. Region tokens are appended if
    they are missing, and <image> comes last, but for tokens that were added behind it.

    Added tokens must follow it without a gap. Raises InputError if the model is not one of Gemma's kind.
    """
    try:
        pieces = list(read_pieces(model.read_bytes()))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error):
        pieces = []
    if not pieces:
        raise InputError(f"{model} is not a SentencePiece model")
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    unknown = next((piece.text for piece in pieces if piece.kind == UNKNOWN), None)
    tokenizer = Tokenizer(
        models.BPE(ids, _merges(pieces, ids), unk_token=unknown, byte_fallback=True, fuse_unk=True),
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [piece.text for piece in pieces if piece.kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    found_first = [piece.text for piece in pieces if piece.kind == USER_DEFINED]
    tokenizer.add_tokens([AddedToken(text, normalized=True) for text in [*found_first, *LOCATIONS, *SEGMENTS]])
    tokenizer.add_special_tokens([AddedToken(IMAGE, normalized=False, special=True)])
    _append(tokenizer, {token: token_id for token, token_id in (added or {}).items() if token != IMAGE})
    target.write_bytes(tokenizer.to_str(pretty=True).encode())  # not its own writer: Python says that a disk is full


def _append(tokenizer: Tokenizer, added: Mapping[str, int]) -> None:
    """Add tokens behind all others, in the order of their ids. Raises InputError if one of them has another id."""
    for token, token_id in sorted(added.items(), key=lambda pair: pair[1]):
        tokenizer.add_tokens([AddedToken(token, normalized=False)])
        if tokenizer.token_to_id(token) != token_id:
            raise InputError(f"the added token {token!r} has the id {token_id}, which does not follow the vocabulary")


def _merges(pieces: list[Piece], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every split of a piece into two others, best piece first: SentencePiece joins what makes the best piece."""
    merged = sorted((p for p in pieces if p.kind == NORMAL and len(p.text) > 1), key=lambda piece: -piece.score)
    merges = []
    for piece in merged:
        splits = [(piece.text[:cut], piece.text[cut:]) for cut in range(1, len(piece.text))]
        known = [split for split in splits if split[0] in ids and split[1] in ids]
        merges += sorted(known, key=lambda split: (ids[split[0]], ids[split[1]]))
    return merges


def read_pieces(model: bytes) -> Iterator[Piece]:
    """The vocabulary of a SentencePiece model: in its protobuf, field 1, with text, score and kind as fields 1 to 3."""
    for number, content in _fields(model):
        if number == 1 and isinstance(content, bytes):
            piece = dict(_fields(content))
            (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
            yield Piece(piece[1].decode(), score, piece.get(3, NORMAL))


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, content) of each field: an int, or the bytes of anything else."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        size, at = _varint(message, at) if kind == 2 else (8 if kind == 1 else 4, at)
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number written seven bits a byte, lowest first, and the index behind it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
