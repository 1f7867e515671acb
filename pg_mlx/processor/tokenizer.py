"""Text to ids and back, from what checkpoints carry: tokenizer.model or tokenizer.json, and lists of added tokens.

Gemma's vocabulary has 256,000 pieces; PaliGemma's adds 1,024 locations <loc0000>.. and 128 mask codes <seg000>.. .
Spaces are kept as they are (written as "▁" inside), and nothing is trimmed or normalised. Text without a piece is
spelt in bytes <0x00>..<0xFF>.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError
from ..files.regular import read_regular
from .added_tokens import (
    CONTROL,
    IMAGE,
    LETTERS,
    MAX_ID,
    MAX_JSON_BYTES,
    Splitter,
    added_in_config,
    added_in_json,
    added_in_list,
)

# The names of all region tokens, in the order of their ids.
LOCATIONS = [f"<loc{i:04}>" for i in range(1024)]
SEGMENTS = [f"<seg{i:03}>" for i in range(128)]
FORMS = ("tokenizer.model", "tokenizer.json")
LISTS = {"tokenizer_config.json": added_in_config, "added_tokens.json": added_in_list}
"""Files beside them that may list added tokens, and how those are read."""
_REGION_TOKEN = re.compile(r"(<loc(?:0\d{3}|10[01]\d|102[0-3])>|<seg(?:0\d{2}|1[01]\d|12[0-7])>)", re.ASCII)
_MAX_MODEL_BYTES = 64 << 20
"""The largest tokenizer.model that is read; Gemma's takes under 5 MB."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class _Pieces(Protocol):
    """What a backend provides: how plain text is cut, and what the pieces are."""

    size: int
    gaps: frozenset[int]
    """Ids below `size` that no piece has."""

    def encode(self, text: str) -> list[int]: ...
    def piece(self, token_id: int) -> str: ...
    def id(self, piece: str) -> int | None: ...


class Tokenizer:
    """One interface to all file formats. Ids run from 0 to vocab_size - 1; those in `barred` are no text, and no answer
    has them: <image>, where added tokens follow it, and rows of padding."""

    def __init__(self, pieces: _Pieces):
        self._pieces = pieces
        self.vocab_size = pieces.size
        self.location_ids = self._region_ids(LOCATIONS)
        self.segmentation_ids = self._region_ids(SEGMENTS)
        self.pad_id, self.eos_id, self.bos_id = (self._required(piece) for piece in CONTROL)
        self.barred = frozenset(i for i in (*pieces.gaps, pieces.id(IMAGE)) if i is not None and i < self.vocab_size)
        self._region_id = dict(zip(LOCATIONS, self.location_ids, strict=True))
        self._region_id |= dict(zip(SEGMENTS, self.segmentation_ids, strict=True))
        self._region_piece = {token_id: piece for piece, token_id in self._region_id.items()}

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """As `from_files`, from those in a folder."""
        found = {name: folder / name for name in (*FORMS, *LISTS) if (folder / name).is_file()}
        if not found.keys() & {*FORMS}:
            raise InputError(f"{folder} has no tokenizer: neither tokenizer.model nor tokenizer.json")
        return cls.from_files(found)

    @classmethod
    def from_files(cls, files: Mapping[str, Path]) -> Tokenizer:
        """From tokenizer.model if there is one (it loads in 50 ms, the other in 0.7 s), else from tokenizer.json; and
        from tokenizer.json, or with those of LISTS, where they have tokens that the first one lacks.

        files: by their names; others than these are ignored, and one of the first two is needed. Raises InputError if a
        file is not of a tokenizer of Gemma's kind.
        """
        tokenizer = cls.from_file(files[FORMS[0] if FORMS[0] in files else FORMS[1]])
        in_json = tokenizer._lacks(added_in_json(files[FORMS[1]])) if {*FORMS} <= files.keys() else {}
        listed = tokenizer._lacks(listed_tokens(files))
        if in_json and listed.keys() <= in_json.keys():
            return cls.from_file(files[FORMS[1]])
        added = in_json | listed
        return cls(_WithAdded(tokenizer._pieces, added)) if added else tokenizer

    def _lacks(self, tokens: Mapping[str, int]) -> dict[str, int]:
        """Those of some added tokens that this vocabulary does not have."""
        known = {*LETTERS, *self._region_id}
        return {token: i for token, i in tokens.items() if token not in known and self._pieces.id(token) is None}

    @classmethod
    def from_file(cls, path: Path) -> Tokenizer:
        """From a .json or a SentencePiece file. Raises InputError if it is not a tokenizer of Gemma's kind."""
        try:
            return cls(_JsonPieces(path) if path.suffix == ".json" else _SentencePieces(path))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # RuntimeErrors, plain Exceptions, and panics of Rust code, which are none
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is not a readable tokenizer: {reason}") from None

    def _required(self, piece: str) -> int:
        found = self._pieces.id(piece)
        if found is None:
            raise InputError(f"the vocabulary has no {piece}")
        return found

    def _region_ids(self, names: list[str]) -> range:
        """The ids of these pieces. If the vocabulary lacks them, as plain Gemma's does, they are appended to it."""
        first, last = self._pieces.id(names[0]), self._pieces.id(names[-1])
        if first is None:
            first = self.vocab_size
            self.vocab_size += len(names)
        elif last is None or last - first != len(names) - 1:
            raise InputError(f"{names[0]}..{names[-1]} do not stand in a row in the vocabulary")
        return range(first, first + len(names))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without <bos> or <eos>. Region tokens are found first, so that no vocabulary
        can cut them into letters. Raises InputError for a lone surrogate, as from bytes that were not UTF-8."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode at character {error.start}; write it in UTF-8") from None
        ids: list[int] = []
        for number, part in enumerate(_REGION_TOKEN.split(text)):
            if number % 2:
                ids.append(self._region_id[part])
            elif part:
                ids += self._pieces.encode(part)
        return ids

    def piece(self, token_id: int) -> bytes:
        """The bytes that an id contributes to text: none for <pad>, <eos>, <bos>; one for a byte piece. Raises
        InputError for an id outside the vocabulary."""
        if token_id in (self.pad_id, self.eos_id, self.bos_id) or token_id in self.barred:
            return b""
        if token_id in self._region_piece:
            return self._region_piece[token_id].encode()
        if not 0 <= token_id < self.vocab_size:
            raise InputError(f"no token {token_id}; ids run from 0 to {self.vocab_size - 1}")
        piece = self._pieces.piece(token_id)
        byte = _BYTE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD. Raises InputError as `piece`."""
        return b"".join(map(self.piece, ids)).decode(errors="replace")

    @cached_property
    def newline_ids(self) -> list[int]:
        """The newline that ends every prompt: [108] in Gemma's vocabulary."""
        return self.encode("\n")


def listed_tokens(files: Mapping[str, Path]) -> dict[str, int]:
    """The added tokens in the files of LISTS that are among these, by name. Raises InputError."""
    found: dict[str, int] = {}
    for name, read in LISTS.items():
        found |= read(files[name]) if name in files else {}
    return found


class TextStream:
    """Text of ids that come one by one: each character as soon as all its bytes are there.

    The texts of all pushes and of the final flush together equal `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that became final with this id; it may be empty."""
        return self._decoder.decode(self._tokenizer.piece(token_id))

    def flush(self) -> str:
        """The rest: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


def _read(path: Path, most: int) -> bytes:
    try:
        return read_regular(path, most)
    except InputError as error:
        raise InputError(str(error).removeprefix(f"{path} ")) from None


class _SentencePieces:
    def __init__(self, path: Path):
        from sentencepiece import SentencePieceProcessor

        self._model: Any = SentencePieceProcessor()
        self._model.LoadFromSerializedProto(_read(path, _MAX_MODEL_BYTES))
        self.size, self.gaps = self._model.vocab_size(), frozenset[int]()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def piece(self, token_id: int) -> str:
        return self._model.id_to_piece(token_id)

    def id(self, piece: str) -> int | None:
        found = self._model.piece_to_id(piece)
        return None if found == self._model.unk_id() else found


class _JsonPieces:
    def __init__(self, path: Path):
        from tokenizers import Tokenizer as Backend

        from .gemma_json import gemma_only

        self._model: Any = Backend.from_str(gemma_only(_read(path, MAX_JSON_BYTES)))
        self._model.encode_special_tokens = True  # "<eos>" in text is letters, as in the other form
        vocabulary = self._model.get_vocab(with_added_tokens=True)
        self.size = 1 + max((i for piece, i in vocabulary.items() if piece != IMAGE), default=-1)
        if self.size > MAX_ID:
            raise InputError(f"its ids reach {self.size - 1}, which is no vocabulary of Gemma's kind")
        # The published file has a tab as itself, and no <0x09>.
        if not all(f"<0x{byte:02X}>" in vocabulary or (byte < 128 and chr(byte) in vocabulary) for byte in range(256)):
            raise InputError("its vocabulary lacks bytes, so there is text that it cannot spell")
        self.gaps = frozenset(range(self.size)) - {*vocabulary.values()} if len(vocabulary) < self.size else frozenset()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def piece(self, token_id: int) -> str:
        return self._model.id_to_token(token_id) or ""

    def id(self, piece: str) -> int | None:
        return self._model.token_to_id(piece)


class _WithAdded:
    """Other pieces, and added tokens in front of them. Each part of a text between two of those is encoded alone."""

    def __init__(self, pieces: _Pieces, added: dict[str, int]):
        self._pieces, self._splitter = pieces, Splitter(added)
        self._added = {token_id: token for token, token_id in added.items()}
        self.size = max(pieces.size, 1 + max(self._added))
        self.gaps = frozenset([*pieces.gaps, *range(pieces.size, self.size)]) - self._added.keys()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part, token_id in self._splitter.split(text):
            ids += self._pieces.encode(part) if token_id is None else [token_id]
        return ids

    def piece(self, token_id: int) -> str:
        return self._added[token_id] if token_id in self._added else self._pieces.piece(token_id)

    def id(self, piece: str) -> int | None:
        return self._splitter.ids.get(piece, self._pieces.id(piece))
