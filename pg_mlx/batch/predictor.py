"""Predictor: columns in, columns out, for data engines and for loops of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .answering import Answerer
from .entries import IMAGE_COLUMNS, PROMPT_COLUMN, Entry, column_of

if TYPE_CHECKING:
    from typing import Unpack  # Python 3.11

    from ..generation.options import GenerateOptions

OUTPUTS = ("width", "height", "text", "regions", "malformed", "finish_reason", "token_ids", "error")
"""The columns that a Predictor adds; of them, regions and malformed hold JSON text."""


class Predictor:
    """A loaded model that is called with columns. Ray Data's map_batches takes the class, and pandas, Dask, Spark's
    mapInPandas and pyarrow's batches go through it as docs/batch.md shows.

    One row comes out for each row that goes in, in its order. A picture that cannot be read is an `error` in its row,
    and the rows beside it have their answers. Calls from several threads wait for each other. A call ends with
    batches that are not full, so give it a few hundred rows or more.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        prompt: str | None = None,
        *,
        image: str | None = None,
        keep: Sequence[str] | None = None,
        batch_size: int | None = None,
        load: Mapping[str, Any] | None = None,
        min_score: float | None = None,
        dedup_iou: float | None = None,
        **options: Unpack[GenerateOptions],
    ):
        """Load the model.

        model: as `pg_mlx.load` takes it; None for the bundled demo. prompt: asked about every picture; None if a column
        `prompt` has a question for each. image: the column with pictures (paths, addresses, bytes, arrays, PIL images,
        or dicts with "bytes" or "path"); None for the first that is there of image, bytes, path, image_path, file_name
        and url. keep: the input columns that come back; None for all but one with pictures in it. batch_size: answers
        computed at a time. load: options of `pg_mlx.load`. min_score, dedup_iou, max_regions: which regions are kept,
        as RegionFilter has them. options: see GenerateOptions.
        Raises InputError for a checkpoint, prompt or option that is wrong, TypeError for an unknown option.
        """
        from ..checkpoint.load import load as load_checkpoint
        from ..demo import CHECKPOINT
        from ..regions.select import RegionFilter

        kept = RegionFilter(min_score, dedup_iou, options.pop("max_regions", None))
        self._image, self._prompt, self._lock = image, prompt, Lock()
        self._keep = None if keep is None else tuple(keep)
        loaded = load_checkpoint(CHECKPOINT if model is None else model, **(load or {}))
        self._answerer = Answerer(*loaded, options, kept, batch_size)
        if prompt is not None:
            self._answerer.check([prompt])

    def __call__(self, columns: Any) -> dict[str, Any]:
        """The columns that are kept, as they came, and those of OUTPUTS as lists.

        columns: a dict of lists or arrays of one length, a pandas DataFrame, or a pyarrow table or batch.
        Raises InputError if there is no column with pictures or prompts, if lengths differ, or if a column that is kept
        has a name of OUTPUTS.
        """
        if hasattr(columns, "to_pydict"):  # pyarrow's iterate over columns, not over names
            columns = columns.to_pydict()
        table = {name: columns[name] for name in columns}
        image = column_of(table, self._image, IMAGE_COLUMNS)
        if image is None or image not in table:
            raise InputError(f"there is no column {image or 'with pictures'}; there is: {', '.join(map(str, table))}")
        if self._prompt is None and PROMPT_COLUMN not in table:
            raise InputError("there is neither a prompt nor a column `prompt`")
        if len({len(values) for values in table.values()}) > 1:
            raise InputError("the columns have different lengths")
        kept = self._kept(table, image)
        with self._lock:
            answers = dict(self._answerer.rows(self._questions(table, image)))
        rows = [answers[number] for number in range(len(table[image]))]
        return {
            **{name: table[name] for name in kept},
            **{name: [_plain(name, row[name]) for row in rows] for name in OUTPUTS},
        }

    def _questions(self, table: dict[str, Any], image: str) -> Iterator[tuple[Entry, str | None]]:
        prompts = None if self._prompt is not None else list(table[PROMPT_COLUMN])
        for number, value in enumerate(table[image]):
            prompt = self._prompt if prompts is None else prompts[number]
            entry = Entry(number, "", _picture(value))
            if prompt is not None and not isinstance(prompt, str):
                entry, prompt = Entry(number, "", error="its prompt is no text"), None
            yield entry, prompt

    def _kept(self, table: dict[str, Any], image: str) -> tuple[str, ...]:
        if self._keep is None:
            paths = all(isinstance(value, str) for value in table[image])
            kept = tuple(name for name in table if name != image or paths)
        else:
            kept = self._keep
        if missing := [name for name in kept if name not in table]:
            raise InputError(f"there is no column {missing[0]} to keep")
        if taken := [name for name in kept if name in OUTPUTS]:
            raise InputError(f"the column {taken[0]} would be replaced by the answers' own; rename it, or leave it out")
        return kept


def _picture(value: Any) -> Any:
    """What load_image takes, of a picture as `datasets` stores it, too."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    return "" if value is None else value


def _plain(name: str, value: Any) -> Any:
    """Lists of dicts as JSON text, since engines want a column's type to be the same in every batch."""
    return json.dumps(value) if name in ("regions", "malformed") else value
