"""Names of hub repositories as people have them: owner/name, a page's address, a file in it, a folder of the cache."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from ..errors import InputError

REPOSITORY = re.compile(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+")

_ADDRESS = re.compile(
    r"(?:https?:/+|hf:/+)?(?:www\.)?(?:(?:huggingface\.co|hf\.co|hf-mirror\.com)/+|(?<=hf:/)|(?<=hf://))"
    r"(?P<repo>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)"
    r"(?:@(?P<at>[^/?#]+)|/(?:tree|blob|resolve|raw)/(?P<tree>[^/?#]+))?(?:/(?P<rest>[^?#]*))?(?:[?#].*)?"
)
"""A repository's page, or a file in it, as people copy it from a browser."""

_AT_REVISION = re.compile(r"(?P<repo>[A-Za-z0-9._-]+/[A-Za-z0-9._-]+)@(?P<at>[^/?#@\s]+)")


def address(path_or_repo: str | Path, revision: str | None = None) -> tuple[str | Path, str | None]:
    """What the address of a hub page names: (owner/name, revision), or (owner/name/FILE.npz, revision);
    owner/name@REVISION names the same. Anything else is returned as it is. Raises InputError for the page of something
    that is no model."""
    at = _AT_REVISION.fullmatch(path_or_repo) if isinstance(path_or_repo, str) else None
    if at and is_repository(at["repo"]) and not Path(at[0]).exists():
        return at["repo"], revision or at["at"]
    found = _ADDRESS.fullmatch(str(path_or_repo))
    if not found or Path(path_or_repo).exists():
        return path_or_repo, revision
    if found["repo"].partition("/")[0] in ("datasets", "spaces", "collections", "papers", "docs", "blog"):
        raise InputError(f"{path_or_repo} is not the page of a model")
    file = Path(found["rest"] or "").name
    name = f"{found['repo']}/{file}" if file.endswith(".npz") else found["repo"]
    return name, revision or found["at"] or found["tree"]


def is_repository(given: str | Path) -> bool:
    """Whether a name can be that of a hub repository, and is not a mistyped path."""
    if isinstance(given, Path) or given.startswith(".") or not REPOSITORY.fullmatch(given):
        return False
    return not Path(given.partition("/")[0]).is_dir()


def repository_of(name: str | Path) -> str | None:
    """owner/name of "owner/name/FILE"; None if that cannot be a file of a hub repository."""
    if isinstance(name, Path):
        return None
    repo, _, file = name.rpartition("/")
    return repo if file and is_repository(repo) else None


def snapshot_of(folder: Path) -> str | None:
    """owner/name of the repository of which a folder is a snapshot in the hub's cache; None for any other folder."""
    repository = folder.parent.parent
    if folder.parent.name != "snapshots" or not (repository / "blobs").is_dir():
        return None
    return repository.name.removeprefix("models--").replace("--", "/")


def cached_snapshot(folder: Path) -> Path:
    """The snapshot in a repository's folder of the hub's cache (models--owner--name, or its `snapshots`); any other
    folder as it is. Raises InputError if there are several, and none of them is the main one."""
    snapshots = folder if folder.name == "snapshots" else folder / "snapshots"
    if (folder / "config.json").is_file() or not snapshots.is_dir() or not (snapshots.parent / "blobs").is_dir():
        return folder
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    main = snapshots.parent / "refs" / "main"
    with contextlib.suppress(OSError):
        found = [path for path in found if path.name == main.read_text().strip()] or found
    if len(found) != 1:
        raise InputError(
            f"{folder} is a folder of the hub's cache with {len(found)} snapshots; name one of {snapshots}"
        )
    return found[0]
