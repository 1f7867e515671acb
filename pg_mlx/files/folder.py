"""Writing a folder whole or not at all, and deleting nothing but what the writer owns."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from .exchange import exchange

Owned = Callable[[Path], list[Path]]
"""Lists everything in a folder, in the order in which it may be deleted (a folder in it after its files), or raises
InputError if something is not the writer's own."""

PARTIAL_MARK = ".partial"
"""An empty file that is in a temporary folder from its beginning to its end, so that a later run knows it again."""

_NOT_SYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY)
"""What a network or FUSE disk answers that cannot make a folder durable. There is nothing to be done about it."""


def nothing_owned(folder: Path) -> list[Path]:
    """For a writer that replaces empty folders only. Raises InputError if the folder holds anything."""
    for path in sorted(folder.iterdir()):
        raise InputError(f"{folder} holds {path.name}, so it is not replaced")
    return []


@contextlib.contextmanager
def whole_folder(target: Path, force: bool = False, owned: Owned = nothing_owned) -> Iterator[Path]:
    """A temporary sibling of `target` to write into, which takes its name only if nothing went wrong.

    With `force` an existing folder is replaced if all that it holds is `owned`. It lives until the new one is complete,
    and then only the files that `owned` lists are deleted. A process that is killed leaves its sibling behind; the next
    run for the same target removes it. Raises InputError if the target may not be written.
    """
    target = check_target(target, force, owned)
    _clean_up(target, owned)
    check_target(target, force, owned)
    partial, replaced = (target.parent / f".{target.name}.{state}-{os.getpid()}" for state in ("partial", "replaced"))
    partial.mkdir()
    made = partial.stat()
    complete, deletable = False, list[Path]()
    try:
        (partial / PARTIAL_MARK).touch()
        yield partial
        (partial / PARTIAL_MARK).unlink()
        _sync(partial)
        if target.exists():
            if not force:
                raise InputError(f"{target} has appeared meanwhile; choose another name, or --force to replace it")
            deletable, state = owned(target), _state(target)  # again: it may have changed meanwhile
            old = partial if exchange(partial, target) else target.rename(replaced)
            if _state(old) != state:
                raise InputError(f"{target} has changed meanwhile, so it is not replaced")
        if _is(partial, made):
            partial.rename(target)
        complete = True
        sync_entries(target.parent)
    finally:
        old = replaced if _is(partial, made) or not partial.exists() else partial
        if old.exists() and complete:
            _delete(old, [path.relative_to(target) for path in deletable])
        elif old.exists() and not (target.exists() and exchange(old, target)):
            old.rename(target)
        if _is(partial, made):
            shutil.rmtree(partial, ignore_errors=True)


def _is(folder: Path, made: os.stat_result) -> bool:
    """Whether a folder is the one that was made, and not another one that has its name by now."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(folder.stat(), made)
    return False


@contextlib.contextmanager
def whole_files(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target` to write files into, which take their places only if nothing went wrong.

    A new target appears whole. In one that is there each file replaces its namesake, whole, one after the other, and
    everything else stays. What killed processes left beside it is removed.
    """
    _clean_up(target, nothing_owned)
    partial = target.parent / f".{target.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        (partial / PARTIAL_MARK).touch()
        yield partial
        _sync(partial)
        if target.exists():
            for path in sorted(partial.iterdir()):
                if path.name != PARTIAL_MARK:
                    path.replace(target / path.name)
        else:
            partial.rename(target)  # with its mark: without, a later run would not know what was left here
            sync_entries(target.parent)
        (target / PARTIAL_MARK).unlink(missing_ok=True)
        sync_entries(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_unfinished(path: Path) -> bool:
    """Whether a killed process has left this folder: a sibling that `whole_folder` or `whole_files` writes into."""
    return path.name.startswith(".") and ".partial-" in path.name and (path / PARTIAL_MARK).is_file()


def check_target(target: Path, force: bool, owned: Owned = nothing_owned) -> Path:
    """Where a folder called `target` is written: links are followed, so that they stay.

    Raises InputError if that cannot be, or if a folder is there that may not be replaced.
    """
    try:
        place = target.resolve()
        if place.is_symlink():  # before Python 3.13 a link to itself is returned as it is
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{target} cannot be followed: {error}") from None
    if not place.parent.is_dir():
        raise InputError(f"no such folder: {place.parent}")
    if not place.exists():
        return place
    if not force:
        raise InputError(f"{target} exists already; choose another name, or --force to replace it")
    if not place.is_dir():
        raise InputError(f"{target} is a file; only a folder can be replaced")
    if os.path.ismount(place):
        raise InputError(f"{target} is a disk of its own (a mount point), which cannot be replaced")
    with contextlib.suppress(FileNotFoundError):  # the working directory may be gone itself
        if holds(place, Path.cwd()):
            raise InputError(f"{target} is or holds the working directory, so it is not replaced")
    owned(place)
    return place


def holds(folder: Path, path: Path) -> bool:
    """Whether `path` is `folder` or lies in it, links followed, under whatever names both are reached."""
    own = folder.stat()
    for place in (real := path.resolve(), *real.parents):
        with contextlib.suppress(OSError):
            if os.path.samestat(own, place.stat()):
                return True
    return False


def _state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """What shows that a file of a folder has come, gone or changed."""
    files = {path.name: path.lstat() for path in folder.iterdir()}
    return {name: (file.st_ino, file.st_size, file.st_mtime_ns) for name, file in files.items()}


def _delete(folder: Path, names: Iterable[Path]) -> None:
    """Delete what has these names in a folder, and then the folder. If it still holds anything, it stays, and stderr
    says where."""
    try:
        for name in names:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        print(f"pg_mlx: {folder} could not be removed: {error.strerror}", file=sys.stderr)


def _delete_owned(folder: Path, owned: Owned) -> None:
    """Delete a folder that a killed process left, unless it holds anything that is not the writer's."""
    with contextlib.suppress(InputError):
        _delete(folder, [path.relative_to(folder) for path in owned(folder)])


def _clean_up(target: Path, owned: Owned) -> None:
    """Remove what killed processes left; if one died between its two renames, give the old folder its name back."""
    for state in ("replaced", "partial"):
        for left in target.parent.glob(f".{glob.escape(target.name)}.{state}-*"):
            if _is_alive(left.name.rpartition("-")[2]) or left.is_symlink() or not left.is_dir():
                continue
            if state == "replaced" and not target.exists():
                left.rename(target)
            elif state == "replaced":
                _delete_owned(left, owned)
            elif (left / PARTIAL_MARK).is_file() or not any(left.iterdir()):
                shutil.rmtree(left, ignore_errors=True)
            else:  # it was complete, and only lacked its name
                _delete_owned(left, owned)


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    return int(pid) != os.getpid()


def _sync(folder: Path) -> None:
    """Make the folder's files and entries durable before it takes its name."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            _sync(path)
    _fsync(path for path in folder.iterdir() if path.is_file())
    sync_entries(folder)


def sync_entries(folder: Path) -> None:
    """Make the names in a folder durable, where its disk can do that."""
    try:
        _fsync([folder])
    except OSError as error:
        if error.errno not in _NOT_SYNCABLE:
            raise


def _fsync(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
