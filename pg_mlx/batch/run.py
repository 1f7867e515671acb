"""One process answers shards of a job, one after another, without a pause between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .answering import Answerer
from .entries import Entry
from .job import BatchJob, JobFolder

if TYPE_CHECKING:
    from ..generation.options import GenerateOptions

RowSeen = Callable[[dict[str, Any]], None]
"""Called with each row as soon as it is known."""


@dataclass
class _OpenShard:
    """A shard whose rows are coming."""

    number: int
    left: int
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)


def load_answerer(job: BatchJob, batch_size: int | None = None, progress: Any = None) -> Answerer:
    """Load the model of a job. Raises InputError for a checkpoint, an option or a prompt that is wrong."""
    from ..checkpoint.load import LoadOptions, load_with
    from ..demo import CHECKPOINT
    from ..regions.select import RegionFilter

    model, processor = load_with(job.model or CHECKPOINT, LoadOptions(**job.load), progress)
    options: GenerateOptions = {**job.options}  # type: ignore[typeddict-item]  # checked by the Answerer
    answerer = Answerer(model, processor, options, RegionFilter(**job.kept), batch_size)
    answerer.check(job.prompts)
    return answerer


def answer_shards(
    job: BatchJob,
    place: JobFolder,
    numbers: Iterable[int],
    answerer: Answerer,
    seen: RowSeen = lambda row: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Answer shards, and write each as soon as it is whole.

    The model goes from one shard to the next without waiting, so a process that is killed loses at most one shard and
    the beginning of the next. Rows of a shard that is not whole are lost if `cancelled` returns True.
    Raises InputError if a source has changed, PgMlxError if a shard cannot be written.
    """
    where: dict[int, tuple[_OpenShard, int]] = {}  # the questions that are not answered yet

    def questions() -> Iterator[tuple[Entry, str | None]]:
        asked = 0
        for number in numbers:
            shard, position = _OpenShard(number, place.rows_of(number)), 0
            for entry in place.entries(job, number):
                for prompt in job.prompts or (entry.prompt,):
                    where[asked] = shard, position
                    asked += 1
                    position += 1
                    yield entry, prompt

    for question, row in answerer.rows(questions(), cancelled):
        shard, position = where.pop(question)
        shard.rows[position] = row
        shard.left -= 1
        seen(row)
        if not shard.left:
            place.files.write(shard.number, [shard.rows[index] for index in sorted(shard.rows)])
