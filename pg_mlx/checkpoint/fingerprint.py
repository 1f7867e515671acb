"""Which checkpoint a job runs, known by its content, so that the same one in another folder or on another machine is
the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..demo import CHECKPOINT
from .adapters.base import find_base
from .adapters.folder import find_folder
from .open import locate, tokenizer_files
from .wanted import BESIDE_THE_TOKENIZER, TOKENIZER_FILES

_SUFFIXES = (".json", ".safetensors", ".npz", ".model")
_OF_TOKENIZER = (*TOKENIZER_FILES, *BESIDE_THE_TOKENIZER)
_WHOLE = 64 << 20
"""Bytes of a file that is read whole."""
_SPOTS, _SPOT = 512, 4096
"""So many places of so many bytes are read of a larger file: a fine-tune changes its weights everywhere, or at least in
some matrices of every layer."""


def fingerprint(model: str | None, load: dict[str, Any], *, weights_only: bool = False) -> str:
    """A digest of the files of a model: its checkpoint, adapters, tokenizer and mask decoder.

    load: options of LoadOptions. weights_only: without tokenizer and mask decoder. A hub repository is downloaded
    unless it is cached. Raises InputError if a file is not there, and PgMlxError if the hub cannot be reached.
    """
    named = find_base(model or CHECKPOINT, load.get("revision"))
    place = locate(named.checkpoint, named.revision)
    digest = hashlib.sha256()
    for folder in (place, *named.adapters, *map(find_folder, _listed(load.get("adapter_path")))):
        _add(digest, [path for path in _files(folder) if not (weights_only and path.name in _OF_TOKENIZER)])
    if not weights_only and load.get("tokenizer") is not None:
        _add(digest, tokenizer_files(load["tokenizer"]).values())
    if not weights_only and load.get("mask_decoder") is not None:
        _add(digest, [Path(load["mask_decoder"]).expanduser()])
    return digest.hexdigest()[:32]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return sorted(path for path in place.iterdir() if path.suffix in _SUFFIXES and path.is_file())


def _add(digest: Any, paths: Iterable[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{path.name} {size}\n".encode())
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            digest.update(file.read(1 << 20))  # the header
            for spot in range(_SPOTS):
                file.seek((size - _SPOT) * spot // (_SPOTS - 1))
                digest.update(file.read(_SPOT))
