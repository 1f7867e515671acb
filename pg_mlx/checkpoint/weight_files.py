"""Which files of a folder or a repository hold its weights, judged by their names and the index."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ..errors import InputError
from .other_forms import way_out

INDEX = "model.safetensors.index.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapters.safetensors")
"""PEFT's, and mlx-vlm's."""
ADAPTER_CONFIG = "adapter_config.json"

_MAX_FILES = 10_000
_MASK_DECODER = "vae-oid.npz"
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)\.safetensors")
_NOT_WEIGHTS = ("adapter", "optimizer", "consolidated", "training", "scheduler", "random_states")
"""How the names begin of what is not the model, or is the model in another form, as transformers has it."""


class TwoCheckpoints(InputError):
    """A folder or repository holds two whole checkpoints, or weights and an adapter."""


def choose_weight_files(
    place: str, names: Collection[str], weight_map: Any = None, others: Iterable[str] = (), *, on_hub: bool = False
) -> tuple[list[str], str | None]:
    """The files to read, sorted, and a line for people if the index is not followed or an adapter is not read.

    place: what messages call the folder or repository. names: its files. weight_map: the object of that name in its
    index, or None without an index. others: its subfolders, for messages. on_hub: they are a hub repository's, from
    which nobody can move an adapter away. Raises InputError if there are no whole weights, and TwoCheckpoints.
    """
    files = sorted(
        name for name in names if name.endswith(".safetensors") and not name.startswith((".", *_NOT_WEIGHTS))
    )
    indexed = _indexed(place, weight_map)
    missing = [name for name in indexed if name not in names]
    sets = _sets(name for name in files if name not in indexed)
    if indexed and not missing:
        others_whole = [found for found in sets.values() if _is_whole(found)]
        if others_whole:
            raise _two(place, [indexed, *others_whole])
        return indexed, _adapter_beside(place, names, indexed, on_hub)
    whole = [found for key, found in sets.items() if _is_whole(found)]
    if indexed and not whole:
        raise InputError(f"{place} lacks {len(missing)} of {len(indexed)} weight files: {', '.join(missing[:5])}")
    if not indexed and not whole:
        for found in sets.values():  # numbered ones, some of which are not there
            lacking = _lacking(found)
            raise InputError(
                f"{place} lacks {len(lacking)} of {len(found) + len(lacking)} weight files: {', '.join(lacking[:5])}"
            )
        whole = [files] if files else []
    if not whole:
        raise InputError(f"{place} has no weights: no model.safetensors and no index{way_out(names, others)}")
    if len(whole) > 1:
        raise _two(place, whole)
    chosen = whole[0]
    notes = [_adapter_beside(place, names, chosen, on_hub)]
    if indexed:
        notes.append(
            f"{place}: its index names {len(missing)} files that are not there, as {missing[0]}; "
            f"reading {_called(chosen)} instead"
        )
    return chosen, "; ".join(filter(None, notes)) or None


def archives(names: Iterable[str]) -> list[str]:
    """The big_vision archives among files of these names. The mask decoder is none, nor is what macOS keeps beside a
    file on other disks ("._x")."""
    return sorted(n for n in names if n.endswith(".npz") and not n.startswith(".") and n != _MASK_DECODER)


def _indexed(place: str, weight_map: Any) -> list[str]:
    if weight_map is None:
        return []
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise InputError(f"{place}/{INDEX} has no weight_map")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise InputError(f"{place}/{INDEX} names files that are no names")
    names = sorted(set(weight_map.values()))
    if len(names) > _MAX_FILES:
        raise InputError(f"{place}/{INDEX} names {len(names)} files, more than any model has")
    if any(re.split(r"[/\\]", name)[-1] != name or name in ("", ".", "..") for name in names):
        raise InputError(f"{place}/{INDEX} names files outside its folder")
    return names


def _sets(names: Iterable[str]) -> dict[str, list[str]]:
    """Files that make one set of weights, by the name of the set: numbered ones of a kind, model*, weights*."""
    sets: dict[str, list[str]] = {}
    for name in names:
        numbered = _NUMBERED.fullmatch(name)
        if numbered:
            key = f"{numbered[1]}-of-{int(numbered[3])}"
        elif name in ("model.safetensors", "weights.safetensors"):
            key = name
        elif name.startswith(("model", "weights")):
            key = re.sub(r"\d+", "#", name)
        else:
            continue
        sets.setdefault(key, []).append(name)
    return sets


def _lacking(files: list[str]) -> list[str]:
    """The numbered files that are missing from a set."""
    first = _NUMBERED.fullmatch(files[0])
    if not first:
        return []
    total, width = int(first[3]), len(first[2])
    if total > _MAX_FILES:
        raise InputError(f"{files[0]}: no model has {total} files")
    expected = (f"{first[1]}-{number + 1:0{width}}-of-{first[3]}.safetensors" for number in range(total))
    return [name for name in expected if name not in files]


def _is_whole(files: list[str]) -> bool:
    return not _lacking(files)


def _adapter_beside(place: str, names: Collection[str], chosen: list[str], on_hub: bool) -> str | None:
    """What to say of an adapter beside the weights. Raises TwoCheckpoints in a folder that people can tidy."""
    marks = (*ADAPTER_WEIGHTS, ADAPTER_CONFIG) if on_hub else ADAPTER_WEIGHTS
    adapter = next((name for name in marks if name in names), None)
    if adapter is None:
        return None
    if on_hub:
        return (
            f"{place} holds an adapter ({adapter}) beside its weights ({_called(chosen)}); only the weights are read, "
            "and the adapter is put onto them if --adapter-path names it, too"
        )
    raise TwoCheckpoints(
        f"{place} holds two things: weights ({_called(chosen)}) and an adapter ({adapter}); "
        "put the adapter into a folder of its own, and name it with --adapter-path if it is not merged yet"
    )


def _two(place: str, sets: list[list[str]]) -> TwoCheckpoints:
    return TwoCheckpoints(
        f"{place} holds two checkpoints, {_called(sets[0])} and {_called(sets[1])}; move one of them away"
    )


def _called(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} with {len(files) - 1} more"
