"""Where a checkpoint is: a local folder as it stands, or a Hugging Face repository in the local cache."""

from __future__ import annotations

import contextlib
import json
import re
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, PgMlxError
from ..files.json import read_json
from .hub_errors import explain, one_line, reason, unreachable
from .hub_names import REPOSITORY
from .other_forms import way_out
from .wanted import CHECKPOINT, Wanted, archive
from .weight_files import INDEX, archives, choose_weight_files


def resolve(path_or_repo: str | Path, revision: str | None = None, wanted: Wanted = CHECKPOINT) -> Path:
    """The folder of a checkpoint: a local one as it is, or a hub repository, downloaded unless it is cached.

    Only the files that loading needs are downloaded, or those that are `wanted`. revision: a branch, a tag or a commit
    of a hub repository.
    If the hub cannot be reached, the cached snapshot is used.

    Raises InputError if there is no such folder, repository or revision, if the path is a file, or if the repository is
    gated or holds no checkpoint; PgMlxError if the hub cannot be reached and nothing is cached, or the disk is full.
    """
    folder = _local(path_or_repo)
    return folder if folder is not None else _download(str(path_or_repo), revision, wanted)


@dataclass(frozen=True)
class Headers:
    """The headers of a hub repository, read without downloading its weights."""

    config: Path
    """Path of its config.json in the cache."""
    files: dict[str, dict[str, dict[str, Any]]]
    """The header of each file of weights, not yet checked: for each tensor its dtype, shape and data_offsets."""


def at_hand(path_or_repo: str | Path, revision: str | None = None) -> Path | None:
    """A local folder, or a whole cached snapshot; None if something would have to be downloaded.

    Raises InputError if there is no such folder, or the path is a file.
    """
    folder = _local(path_or_repo)
    return folder if folder is not None else cached(str(path_or_repo), revision)


def files(repo: str, revision: str | None = None) -> frozenset[str] | None:
    """The names of a hub repository's files; None if the hub cannot be reached. Raises InputError if it refuses."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(repo, revision=revision or "main").siblings or []
    except Exception as error:  # see _download
        problem = explain(error, repo, revision)
        if isinstance(problem, InputError):
            raise problem from error
        return None
    return frozenset(file.rfilename for file in found)


def headers(repo: str, revision: str | None = None) -> Headers:
    """The config.json of a hub repository and the headers of its weights. No tensor is downloaded.

    Raises as `resolve`.
    """
    from huggingface_hub import HfApi, errors, hf_hub_download

    # What huggingface_hub raises, by its version, for an index or a header that is not what it should be.
    malformed = (
        *(errors.SafetensorsParsingError, struct.error, json.JSONDecodeError),
        *(AttributeError, LookupError, TypeError),
    )
    with _bars_on_a_terminal_only():
        try:
            # One commit for all. This request is also not repeated for half a minute where the hub is away.
            info = HfApi().model_info(repo, revision=revision or "main")
            commit = info.sha
            names = _names(info)
            if "config.json" not in names and archives(names):
                raise InputError(f"{repo} holds an archive, of which nothing is known before it is downloaded")
            config = Path(hf_hub_download(repo, "config.json", revision=commit))
            content = read_json(Path(hf_hub_download(repo, INDEX, revision=commit))) if INDEX in names else None
            weight_map = content.get("weight_map", {}) if isinstance(content, dict) else content and {}
            chosen, note = choose_weight_files(repo, names, weight_map, on_hub=True)
            read = HfApi().parse_safetensors_file_metadata
            with ThreadPoolExecutor(8) as pool:
                found = list(pool.map(lambda name: read(repo, name, revision=commit).tensors, chosen))
        except InputError:
            raise
        except malformed as error:
            raise InputError(f"the headers of the hub repository {repo} cannot be read: {one_line(error)}") from error
        except Exception as error:  # see _download
            raise (explain(error, repo, revision) or unreachable(error, repo)) from error
    if note:
        print(f"pg_mlx: {note}", file=sys.stderr)
    entries = ({key: vars(tensor) for key, tensor in tensors.items()} for tensors in found)
    return Headers(config, dict(zip(chosen, entries, strict=True)))


def _names(info: Any) -> list[str]:
    """The files of a repository that are in no subfolder."""
    return [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]


def space_file(space: str, name: str) -> Path:
    """The path of one file of a Space on the hub, downloaded unless it is cached.

    Raises PgMlxError if the hub cannot be reached, or no longer has the file.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with contextlib.suppress(Exception):  # it never changes, so the hub need not be asked again
        return Path(hf_hub_download(space, name, repo_type="space", local_files_only=True))
    with _bars_on_a_terminal_only():
        try:
            HfApi().space_info(space)  # fails at once where the hub is away; a download is tried for half a minute
            return Path(hf_hub_download(space, name, repo_type="space"))
        except Exception as error:  # see _download
            raise PgMlxError(f"{name} of the Space {space} could not be fetched: {reason(error)}") from error


def _local(given: str | Path) -> Path | None:
    """A local folder, or None if the name can only be that of a hub repository. Raises InputError."""
    if not str(given):
        raise InputError("no folder and no hub repository given")
    name = one_line(given)
    path = Path(given)
    try:
        # "~nobody/x" has no home to expand to: it stays as it is, and is then not found.
        with contextlib.suppress(RuntimeError):
            path = path.expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise InputError(f"a folder is needed, and this is a file: {name}{way_out([path.name])}")
        if isinstance(given, Path) or given.startswith(".") or not REPOSITORY.fullmatch(given):
            bare = isinstance(given, str) and re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", given)
            hint = " (a hub repository is written owner/name)" if bare else ""
            raise InputError(f"no such folder: {name}{hint}")
        owner = path.parts[0]
        if Path(owner).is_dir():
            # A mistyped path must not be looked up on the hub.
            raise InputError(
                f"no such folder: {name} (there is a folder {owner} here, so this is not read as a hub repository)"
            )
    except OSError as error:  # a name too long for the system, or a folder above it that may not be read
        raise InputError(f"cannot open the folder {name}: {error.strerror}") from error
    return None


def _snapshot(repo: str, revision: str | None, wanted: Wanted, local_files_only: bool) -> Path:
    # Imported here: it costs more than the rest of the package together, and local folders need none of it.
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(wanted.patterns),
            ignore_patterns=list(wanted.ignored),
            local_files_only=local_files_only,
        )
    )


def cached(repo: str, revision: str | None, wanted: Wanted = CHECKPOINT) -> Path | None:
    """The snapshot of a hub repository that the cache holds, if it holds all of it."""
    with contextlib.suppress(Exception):
        folder = _snapshot(repo, revision, wanted, local_files_only=True)
        if wanted.is_whole(folder):
            return folder
    return None


def _download(repo: str, revision: str | None, wanted: Wanted) -> Path:
    """The snapshot of a hub repository, in the cache."""
    with _bars_on_a_terminal_only():
        try:
            folder = _snapshot(repo, revision, wanted, local_files_only=False)
        # Every exception: a failing network raises those of requests, httpx or httpx2, depending on the hub's version.
        except Exception as error:
            problem = explain(error, repo, revision)
            if problem is not None:
                raise problem from error
            # huggingface_hub turns to the cache by itself after some network errors, but not after all.
            found = cached(repo, revision, wanted)
            if found is not None:
                return found
            raise unreachable(error, repo) from error
    if wanted is CHECKPOINT and not (folder / "config.json").is_file():
        return _download_archive(repo, revision)
    if wanted is not CHECKPOINT and not wanted.is_whole(folder):
        raise InputError(f"the hub repository {repo} {wanted.lacks}")
    return folder


def _download_archive(repo: str, revision: str | None) -> Path:
    """The snapshot of a repository that holds an archive in place of config.json and safetensors."""
    from huggingface_hub import HfApi

    try:
        names = _names(HfApi().model_info(repo, revision=revision or "main"))
    except Exception as error:  # see _download
        found = cached(repo, revision)
        if found is not None:
            return found
        raise (explain(error, repo, revision) or unreachable(error, repo)) from error
    among = archives(names)
    if not among:
        raise InputError(f"the hub repository {repo} {CHECKPOINT.lacks}{way_out(names)}")
    if len(among) > 1:
        raise InputError(f"{repo} holds several archives; name one of them, as {repo}/{among[0]}: {', '.join(among)}")
    return _download(repo, revision, archive(among[0]))


def resolve_archive(repo: str, name: str, revision: str | None = None) -> Path:
    """The path of an archive in a hub repository, downloaded with its tokenizer unless it is cached. Raises as
    `resolve`."""
    return _download(repo, revision, archive(name)) / name


@contextlib.contextmanager
def _bars_on_a_terminal_only() -> Iterator[None]:
    """Hide huggingface_hub's progress bars if stderr is not a terminal, unless its own environment variable decides."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    watched = sys.stderr is not None and sys.stderr.isatty()
    decided = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled()
    if watched or decided:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
