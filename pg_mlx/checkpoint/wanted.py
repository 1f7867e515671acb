"""Which files of a hub repository are fetched, for what."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
"""The two forms of a vocabulary. The first one is preferred: it loads in 50 ms, the other in 0.7 s."""
BESIDE_THE_TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapters.safetensors")


@dataclass(frozen=True)
class Wanted:
    """Patterns of the files to fetch, and of those not to; whether a folder has all of them; and what one lacks that
    has not, as a part of a sentence."""

    patterns: tuple[str, ...]
    ignored: tuple[str, ...]
    is_whole: Callable[[Path], bool]
    lacks: str


def _has_checkpoint(folder: Path) -> bool:
    """Whether a cached snapshot holds a configuration and every shard of the weights.

    Older versions of huggingface_hub also hand out what an interrupted download left behind.
    """
    weights = [path.name for path in folder.glob("*.safetensors")]
    shards = [int(found[1]) for name in weights if (found := re.search(r"-of-(\d+)\.safetensors$", name))]
    return (folder / "config.json").is_file() and bool(weights) and len(shards) == max(shards, default=0)


def _has_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and any((folder / name).is_file() for name in ADAPTER_WEIGHTS)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a vocabulary."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


# The hub's "*" also matches "/": without the first of these the weights in subfolders would come along.
_NOT_IN_FOLDERS = "*/*"

CHECKPOINT = Wanted(
    (
        "config.json",
        "*.safetensors",
        "model.safetensors.index.json",
        *TOKENIZER_FILES,
        *BESIDE_THE_TOKENIZER,
        "preprocessor_config.json",
        "generation_config.json",
        "mask_decoder.weights",
    ),
    (_NOT_IN_FOLDERS, "adapter_*", "optimizer*", "consolidated*"),
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
