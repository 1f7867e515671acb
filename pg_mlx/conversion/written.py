"""What a conversion wrote, so that a later one knows it again and replaces nothing else.

A folder holds a manifest with a fingerprint of each of its files. A folder that an older version wrote has none; it is
known by its model card and by the head of its weights, which no other program writes like that.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint.mask_decoder import FILE_NAME
from ..errors import InputError
from ..files.folder import PARTIAL_MARK, holds
from ..files.json import read_json
from ..files.safetensors import data_start

MANIFEST = "pg_mlx.json"
CARD, INDEX = "README.md", "model.safetensors.index.json"
CARD_WORDS = "for MLX by pg_mlx."
"""They are in every model card that a conversion wrote."""

_OLD_NAMES = {
    *("config.json", "generation_config.json", "preprocessor_config.json", "quality.json", FILE_NAME),
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
}
"""What lies beside the card, the index and the weights in a folder without a manifest."""

_WHOLE_BYTES = 64 << 20
_SAMPLES, _SAMPLE_BYTES = 256, 4096


def fingerprint(path: Path) -> str:
    """The size of a file and a hash of its bytes; of a file above 64 MiB, of 1 MiB of them, spread evenly."""
    size = path.stat().st_size
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
        else:
            for sample in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return f"{size}-{digest.hexdigest()}"


def write_manifest(folder: Path) -> None:
    """Write down what the files of a folder that is being written are."""
    files = {path.name: fingerprint(path) for path in sorted(folder.iterdir()) if path.name != PARTIAL_MARK}
    (folder / MANIFEST).write_text(json.dumps({"written_by": "pg_mlx", "files": files}, indent=1) + "\n")


def owned(folder: Path) -> list[Path]:
    """Every file of a folder, if a conversion wrote all of them and none has changed since; what the others are known
    by comes last.

    Raises InputError that names the first file that no conversion wrote.
    """
    paths = sorted(folder.iterdir())
    for path in paths:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise _foreign(folder, path)
    known = _manifest(folder)
    if known is None and paths:
        _check_old(folder, paths)
    for path in paths:
        if known is not None and path.name != MANIFEST and known.get(path.name) != fingerprint(path):
            changed = path.name in known
            raise _foreign(folder, path, "which has changed since it was converted" if changed else None)
    last = (INDEX, CARD, MANIFEST)
    return sorted(paths, key=lambda path: last.index(path.name) if path.name in last else -1)


def check_inputs_outside(target: Path, inputs: Iterable[Path]) -> None:
    """Raises InputError if something that is to be read lies in the folder that is to be replaced, links followed."""
    if not target.is_dir():
        return
    for path in inputs:
        inside = [path, *path.iterdir()] if path.is_dir() else [path]
        if any(holds(target, each) for each in inside):
            word = ", or --in-place" if path.is_dir() and path.samefile(target) else ""
            raise InputError(f"{target} holds {path}, which is to be converted; choose another folder{word}")


def _manifest(folder: Path) -> Mapping[str, Any] | None:
    if not (folder / MANIFEST).is_file():
        return None
    content = read_json(folder / MANIFEST)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise _foreign(folder, folder / MANIFEST)
    return files


def _check_old(folder: Path, paths: list[Path]) -> None:
    """Raises InputError unless an older version of this program wrote all of these files of a folder."""
    card = folder / CARD
    if not card.is_file() or CARD_WORDS not in card.read_text(errors="replace"):
        raise _foreign(folder, paths[0])
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    entries = index.get("weight_map") if isinstance(index, dict) else None
    shards = set(map(str, entries.values())) if isinstance(entries, dict) else set()
    for path in paths:
        ours = path.name in shards and _is_our_shard(path)
        if not (ours or path.name in _OLD_NAMES or path.name in (CARD, INDEX)):
            raise _foreign(folder, path)


def _is_our_shard(path: Path) -> bool:
    """Whether the head of a shard is as ShardWriter leaves it: tensors from a multiple of 64 bytes on, after spaces."""
    start = data_start(path)
    if start is None or start % 64:
        return False
    with path.open("rb") as file:
        file.seek(start - 64)
        return file.read(64).isspace()


def _foreign(folder: Path, path: Path, why: str | None = None) -> InputError:
    mark = os.sep if path.is_dir() and not path.is_symlink() else ""
    return InputError(
        f"{folder} holds {path.name}{mark}, {why or 'which no conversion wrote'}, so it is not replaced; "
        "move it away, or choose another folder"
    )
