"""Adapters and the base that they were made for: an adapter given as a model, and one that is put onto another base."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError
from .. import hub
from ..hub_names import address
from ..wanted import ADAPTER, TOKENIZER_FILES
from ..weight_files import ADAPTER_CONFIG
from .folder import read_config
from .peft import Adapter


@dataclass(frozen=True)
class Named:
    """What a path or a hub repository stands for: a checkpoint, and the adapter to put onto it where it is one."""

    checkpoint: str | Path
    revision: str | None
    adapters: tuple[Path, ...] = ()


def find_base(path_or_repo: str | Path, revision: str | None = None, need_tokenizer: bool = False) -> Named:
    """A checkpoint as it is named; for an adapter's folder or repository the base that it names.

    Nothing but an adapter is downloaded. need_tokenizer: a repository that has to be downloaded must have a tokenizer.
    Raises InputError for an adapter that names no base and, so far as that is known, for a checkpoint without
    tokenizer; and what hub.files raises.
    """
    path_or_repo, revision = address(path_or_repo, revision)
    if Path(path_or_repo).suffix == ".npz":
        return Named(path_or_repo, revision)
    folder = hub.at_hand(path_or_repo, revision)
    if folder is None:
        names = hub.files(str(path_or_repo), revision)
        if names is None:  # the hub is away
            folder = hub.cached(str(path_or_repo), revision, ADAPTER)
        elif ADAPTER_CONFIG in names and "config.json" not in names:
            folder = hub.resolve(path_or_repo, revision, ADAPTER)
        elif need_tokenizer and "config.json" in names and not names & {*TOKENIZER_FILES}:
            raise InputError(lacks_tokenizer(str(path_or_repo)))
    if folder is None or (folder / "config.json").is_file() or not (folder / ADAPTER_CONFIG).is_file():
        return Named(path_or_repo, revision)
    config = read_config(folder / ADAPTER_CONFIG)
    base, base_revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        raise InputError(
            f"{path_or_repo} is an adapter that names no base: give that as the model, and this as adapter"
        )
    try:
        hub.at_hand(base)
    except InputError as error:
        raise InputError(
            f"{path_or_repo} is an adapter for {base}, which is not here ({error}): give its base as the model, and "
            "this as adapter"
        ) from None
    return Named(base, base_revision if isinstance(base_revision, str) else None, (folder,))


def lacks_tokenizer(name: str) -> str:
    """The message for a checkpoint without tokenizer."""
    return (
        f"{name} has no tokenizer: neither tokenizer.model nor tokenizer.json; give one, such as its base's, with "
        "--tokenizer FOLDER|REPO|FILE (in Python tokenizer=)"
    )


def compare_bases(adapters: Sequence[Adapter], name: str) -> None:
    """Say on stderr where an adapter was made for another base than the checkpoint of this name. Only the last parts of
    names count, and a longer name (paligemma2-3b-pt-224-8bit) is the same model in another form."""
    for adapter in adapters:
        base = adapter.config.get("base_model_name_or_path")
        if isinstance(base, str) and base and _last(base) not in _last(name):
            shown = " ".join(base.split())[:200]
            print(f"{adapter.folder} was made for {shown}; it is put onto {name}", file=sys.stderr)


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()
