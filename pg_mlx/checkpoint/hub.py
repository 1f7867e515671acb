"""Where a checkpoint is: a local folder as it stands, or a Hugging Face repository in the local cache."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, PgMlxError
from .wanted import CHECKPOINT, Wanted

_REPO = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")


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


def is_repository(given: str | Path) -> bool:
    """Whether a name can be that of a hub repository, and is not a mistyped path."""
    if isinstance(given, Path) or given.startswith(".") or not _REPO.fullmatch(given):
        return False
    return not Path(given.partition("/")[0]).is_dir()


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
        problem = _explain(error, repo, revision)
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
            commit = HfApi().model_info(repo, revision=revision or "main").sha
            config = Path(hf_hub_download(repo, "config.json", revision=commit))
            found = HfApi().get_safetensors_metadata(repo, revision=commit)
        except errors.NotASafetensorsRepoError as error:
            raise InputError(f"the hub repository {repo} has no weights: no model.safetensors and no index") from error
        except malformed as error:
            raise InputError(f"the headers of the hub repository {repo} cannot be read: {_one_line(error)}") from error
        except Exception as error:  # see _download
            raise (_explain(error, repo, revision) or _unreachable(error, repo)) from error
    files = {
        file: {key: vars(tensor) for key, tensor in header.tensors.items()}
        for file, header in sorted(found.files_metadata.items())
    }
    return Headers(config, files)


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
            raise PgMlxError(f"{name} of the Space {space} could not be fetched: {_reason(error)}") from error


def _local(given: str | Path) -> Path | None:
    """A local folder, or None if the name can only be that of a hub repository. Raises InputError."""
    if not str(given):
        raise InputError("no folder and no hub repository given")
    name = _one_line(given)
    path = Path(given)
    try:
        # "~nobody/x" has no home to expand to: it stays as it is, and is then not found.
        with contextlib.suppress(RuntimeError):
            path = path.expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise InputError(f"a folder is needed, and this is a file: {name}")
        if isinstance(given, Path) or given.startswith(".") or not _REPO.fullmatch(given):
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
            problem = _explain(error, repo, revision)
            if problem is not None:
                raise problem from error
            # huggingface_hub turns to the cache by itself after some network errors, but not after all.
            found = cached(repo, revision, wanted)
            if found is not None:
                return found
            raise _unreachable(error, repo) from error
    if not (wanted.is_whole(folder) or (wanted is CHECKPOINT and (folder / "config.json").is_file())):
        raise InputError(f"the hub repository {repo} {wanted.lacks}")
    return folder


def _explain(error: Exception, repo: str, revision: str | None) -> PgMlxError | None:
    """The error to raise for a failed download, or None if the hub gave no answer."""
    from huggingface_hub import constants, errors

    chain = _chain(error)
    full = [e for e in chain if getattr(e, "errno", None) == errno.ENOSPC or "No space left on device" in str(e)]
    if full:
        return PgMlxError(f"the disk is full: no room for {repo} in {constants.HF_HUB_CACHE}")
    if isinstance(error, OSError) and error.filename is not None:  # a local file; network errors name none
        return PgMlxError(f"could not store {repo}: {_one_line(error.strerror)}: {_one_line(error.filename)}")
    if isinstance(error, errors.HFValidationError):
        return InputError(f"no such folder, and not a possible name of a hub repository: {repo}")

    # A refusal may come wrapped in "not in the cache", which before version 1 is an HTTP error without a response.
    answers = (e for e in chain if isinstance(e, errors.HfHubHTTPError))
    answer = next((e for e in answers if e.response is not None), None)
    if answer is None:
        return None
    status = answer.response.status_code
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(answer, errors.RevisionNotFoundError):
        return InputError(f"the hub repository {repo} has no revision {_one_line(revision or 'main')}")
    if isinstance(answer, errors.DisabledRepoError):
        return InputError(f"the hub has disabled the repository {repo}: see {page}")
    if isinstance(answer, errors.EntryNotFoundError):
        return InputError(f"the hub repository {repo} has no config.json, or not every file that its index names")
    # Also 403 without a reason: a token that may not read gated repositories gets that.
    if isinstance(answer, errors.GatedRepoError) or status == 403:
        return InputError(
            f"access to {repo} is restricted: accept its licence at {page}, then run `hf auth login`"
            " with a token that may read it"
        )
    if status == 401 and answer.response.headers.get("X-Error-Message", "").startswith("Invalid credentials"):
        return InputError(f"the hub does not accept the token it was given for {repo}: run `hf auth login` again")
    # Without a token the hub answers 401 for what is private and for what does not exist.
    if isinstance(answer, errors.RepositoryNotFoundError) or status == 401:
        return InputError(
            f"no folder {repo} here, and on the hub no such repository, or it is private"
            " (if it is yours, run `hf auth login`)"
        )
    return PgMlxError(f"could not download {repo}: {constants.ENDPOINT} answered HTTP {status}; try again later")


def _unreachable(error: Exception, repo: str) -> PgMlxError:
    """The error to raise if neither the hub nor the cache has the repository."""
    return PgMlxError(
        f"no folder {repo} here, and the hub could not be reached ({_reason(error)}); the cache does not hold all of it"
    )


def _reason(error: Exception) -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    cause = _chain(error)[-1]
    return f"{type(cause).__name__}: {_one_line(cause)}"


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


def _chain(error: BaseException) -> list[BaseException]:
    """An exception and, one after the other, what caused it."""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _one_line(text: object) -> str:
    """A name or another library's message on one line, at most 300 characters of it."""
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else line[:300] + "..."
