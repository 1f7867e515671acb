"""BatchJob: what is asked about which pictures, cut into shards, and the folder that holds the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..files.json import read_json
from ..files.whole import write_whole
from .entries import Columns, Entry, Listing, Section
from .shards import ShardFiles
from .sources import open_listings

JOB_FILE = "job.json"

_FORM = 1
"""The form of job.json; raised by one whenever a version of pg_mlx writes another form."""
_MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class BatchJob:
    """Everything that decides the rows of a job. It can be pickled, and has no model in it."""

    sources: tuple[str, ...]
    prompts: tuple[str, ...]
    """Each is asked about every picture. Empty if every entry has its own."""
    model: str | None = None
    """As `pg_mlx.load` takes it; None for the bundled demo."""
    load: dict[str, Any] = field(default_factory=dict)
    """Options of LoadOptions."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of GenerateOptions."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Options of RegionFilter."""
    columns: Columns = field(default_factory=Columns)
    shard_size: int = 1000
    """Entries of a shard, at most."""
    format: str = "jsonl"

    @cached_property
    def listings(self) -> list[Listing]:
        """The sources, opened. Raises InputError."""
        return open_listings(self.sources, self.columns)

    def described(self) -> dict[str, Any]:
        """What makes this job another job than others, in JSON types. Raises InputError for a source or a model that is
        not there."""
        from ..checkpoint.fingerprint import fingerprint

        return {
            "checkpoint": fingerprint(self.model, self.load),
            "dtype": self.load.get("dtype"),
            "prompts": list(self.prompts),
            "options": {**self.options, **self.kept},
            "sources": [listing.identity for listing in self.listings],
            "columns": [self.columns.image, self.columns.id],
            "shard": self.shard_size,
            "format": self.format,
        }


class Shard(NamedTuple):
    """A part of a job: some entries of one listing."""

    listing: int
    section: Section


@dataclass(frozen=True)
class JobFolder:
    """The folder of a job: job.json, and a file for each shard that is whole."""

    folder: Path
    shards: Sequence[Shard]
    prompts: int
    """How many rows each entry gives."""
    files: ShardFiles

    @classmethod
    def begin(cls, job: BatchJob, folder: Path) -> JobFolder:
        """The folder of a job that begins or goes on. Raises InputError if it holds another job or other files, and
        PgMlxError if it cannot be written."""
        described = json.loads(json.dumps(job.described()))
        place = folder / JOB_FILE
        if not place.exists():
            _check_empty(folder)
            sections = [(number, listing.sections(job.shard_size)) for number, listing in enumerate(job.listings)]
            if not any(found for _, found in sections):
                raise InputError(f"there are no pictures in {', '.join(job.sources)}")
            content = {
                "pg_mlx_batch": _FORM,
                "job": described,
                "integer_ids": all(listing.integer_ids for listing in job.listings),
                "shards": [[number, section.start, section.count] for number, found in sections for section in found],
            }
            write_whole(place, lambda path: _write_json(path, content), replace=False)
        opened = cls.open(folder)
        found = _read(folder)["job"]
        for name in described:
            if found.get(name) != described[name]:
                raise InputError(_other_job(folder, name, found.get(name), described[name]))
        opened.files.sweep([JOB_FILE])
        return opened

    @classmethod
    def open(cls, folder: Path) -> JobFolder:
        """The folder of a job that has begun. Raises InputError if it holds none."""
        content = _read(folder)
        try:
            shards = [Shard(listing, Section(start, count)) for listing, start, count in content["shards"]]
            job = content["job"]
            files = ShardFiles(folder, job["format"], content["integer_ids"])
            return cls(folder, shards, max(1, len(job["prompts"])), files)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{folder / JOB_FILE} is damaged") from None

    def numbers(self, part: int = 1, parts: int = 1) -> range:
        """The shards of a part: every parts-th one. part: from 1."""
        return range(part - 1, len(self.shards), parts)

    def rows_of(self, number: int) -> int:
        """How many rows a shard has."""
        return self.shards[number].section.count * self.prompts

    def entries(self, job: BatchJob, number: int) -> Iterator[Entry]:
        """The entries of a shard. Raises InputError if the source has fewer than it had when the job began."""
        listing, section = self.shards[number]
        count = 0
        for entry in job.listings[listing].entries(section):
            yield entry
            count += 1
        if count != section.count:
            raise InputError(f"{job.listings[listing].name} has changed since the job began")


def _read(folder: Path) -> dict[str, Any]:
    place = folder / JOB_FILE
    if not place.is_file():
        raise InputError(f"{folder} holds no job: there is no {JOB_FILE} in it")
    content = read_json(place, _MAX_BYTES)
    if not isinstance(content, dict) or content.get("pg_mlx_batch") != _FORM:
        raise InputError(f"{place} was not written by this version of pg-mlx batch")
    return content


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _check_empty(folder: Path) -> None:
    """Make the folder if need be. Raises InputError if it holds anything but hidden files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if not path.name.startswith(".") and not (folder / JOB_FILE).exists():  # it may begin at this moment
                raise InputError(f"{folder} holds {path.name}, but no job; choose an empty folder")
    except OSError as error:
        raise InputError(f"cannot use the folder {folder}: {error.strerror}") from None


def _other_job(folder: Path, name: str, found: Any, wanted: Any) -> str:
    if name == "sources":
        return f"{folder} holds a job about other pictures (or the list has changed); choose another folder"
    if name == "checkpoint":
        return f"{folder} holds a job of another checkpoint; choose another folder"
    return f"{folder} holds another job ({name}: {json.dumps(found)}, not {json.dumps(wanted)}); choose another folder"
