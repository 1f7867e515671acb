"""Which files of a hub repository are fetched, for what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from ..files.json import read_json
from .weight_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX, TwoCheckpoints, archives, choose_weight_files

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
"""The two forms of a vocabulary. The first one is preferred: it loads in 50 ms, the other in 0.7 s."""
BESIDE_THE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_BESIDE_ARCHIVE = "*tokenizer*.model"
"""Beside archives tokenizer.model has a name of its own."""


@dataclass(frozen=True)
class Wanted:
    """Patterns of the files to fetch, and of those not to; whether a folder has all of them; and what one lacks that
    has not, as a part of a sentence."""

    patterns: tuple[str, ...]
    ignored: tuple[str, ...]
    is_whole: Callable[[Path], bool]
    lacks: str


def _has_checkpoint(folder: Path) -> bool:
    """Whether a cached snapshot holds a configuration and every shard of the weights, or an archive.

    Older versions of huggingface_hub also hand out what an interrupted download left behind.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()]
    if "config.json" not in names:
        return len(archives(names)) == 1
    content = read_json(folder / INDEX) if INDEX in names else None
    try:
        choose_weight_files(str(folder), names, content.get("weight_map", {}) if isinstance(content, dict) else None)
    except TwoCheckpoints:
        return True  # it is whole, whatever else is wrong with it
    except InputError:
        return False
    return True


def _has_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and any((folder / name).is_file() for name in ADAPTER_WEIGHTS)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a vocabulary."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


# The hub's "*" also matches "/": without the first of these the weights in subfolders would come along.
_NOT_IN_FOLDERS = "*/*"

_NOT_THE_MODEL = (_NOT_IN_FOLDERS, "adapter_model*", "adapters.safetensors", "optimizer*", "consolidated*")
_BESIDE_THE_WEIGHTS = (
    *TOKENIZER_FILES,
    TOKENIZER_BESIDE_ARCHIVE,
    *BESIDE_THE_TOKENIZER,
    "preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
    "mask_decoder.weights",
)

CHECKPOINT = Wanted(
    ("config.json", ADAPTER_CONFIG, "*.safetensors", INDEX, *_BESIDE_THE_WEIGHTS),
    _NOT_THE_MODEL,
    _has_checkpoint,
    "has no config.json, so it holds no checkpoint for pg_mlx",
)
ADAPTER = Wanted(
    (ADAPTER_CONFIG, *ADAPTER_WEIGHTS, *TOKENIZER_FILES, *BESIDE_THE_TOKENIZER),
    (_NOT_IN_FOLDERS,),
    _has_adapter,
    f"has no {ADAPTER_CONFIG} with safetensors weights, so it holds no adapter for pg_mlx",
)
TOKENIZER = Wanted(
    (*TOKENIZER_FILES, *BESIDE_THE_TOKENIZER),
    (_NOT_IN_FOLDERS,),
    has_tokenizer,
    "has no tokenizer: neither tokenizer.model nor tokenizer.json",
)


def archive(name: str) -> Wanted:
    """A big_vision archive of this name, and what lies beside it."""
    return Wanted(
        (name, *_BESIDE_THE_WEIGHTS), _NOT_THE_MODEL, lambda folder: (folder / name).is_file(), f"has no file {name}"
    )
