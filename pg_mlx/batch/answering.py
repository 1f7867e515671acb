"""Entries in, rows out: the part that every way to answer very many pictures shares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from ..errors import InputError, PgMlxError
from ..threads import Prefetch, Shared
from .entries import Entry

if TYPE_CHECKING:
    from ..generation import Generation, Prompt, Request
    from ..generation.options import AnswerOptions, GenerateOptions
    from ..generation.request import Picture
    from ..paligemma import PaliGemma
    from ..processor import Processor
    from ..regions.select import RegionFilter

_PROMPTS = 1024
"""Prompts that are kept as token ids."""


class Answerer:
    """A loaded model that answers about entries, with the same options for all."""

    def __init__(
        self,
        model: PaliGemma,
        processor: Processor,
        options: GenerateOptions,
        kept: RegionFilter,
        batch_size: int | None = None,
    ):
        """kept: which regions of an answer are wanted. batch_size: rows of a batch; None as `generate` has it. Raises
        InputError for a wrong option, TypeError for an unknown one."""
        from ..generation.batch import default_batch_size
        from ..generation.options import AnswerOptions

        self._model, self._processor, self._kept = model, processor, kept
        scores = kept.min_score is not None or bool(options.get("logprobs"))
        self._options = AnswerOptions.read({**options, "logprobs": scores})
        most = kept.enough(self._options.constrain, scores)
        self._rows = batch_size or default_batch_size(model)
        # Of functions that do not refer to this object: a circle would keep a dropped model in memory.
        self._prompt = lru_cache(_PROMPTS)(partial(_shared_prompt, processor, self._options, most))

    def check(self, prompts: Iterable[str]) -> None:
        """Raises InputError for a prompt that cannot be asked, so that it is reported once and not in every row."""
        for prompt in prompts:
            self._prompt(prompt)()

    def rows(
        self, questions: Iterable[tuple[Entry, str | None]], cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number of the question, row) for each entry with a prompt, in the order in which the answers are done.

        questions: read by this thread, a bounded number of them ahead of the answers. Those about one entry that follow
        each other share its picture. None for an entry that should have had a prompt. A question that cannot be
        answered gives a row with an error. Once `cancelled` returns True, answers that are under way give no row.
        """
        from ..generation import Scheduler

        asked: dict[int, tuple[Entry, str | None]] = {}
        requests = Prefetch(self._functions(questions, asked))
        for number, step in Scheduler(
            self._model, self._processor, requests, self._rows, window=2 * self._rows, cancelled=cancelled
        ):
            if isinstance(step, Exception):
                yield number, _row(*asked.pop(number), error=step)
            elif step.generation is not None:
                entry, prompt = asked.pop(number)
                if step.generation.finish_reason != "cancelled":
                    regions = self._kept.select(step.generation.regions)
                    yield number, _row(entry, prompt, replace(step.generation, regions=regions, logprobs=None))

    def _functions(
        self, questions: Iterable[tuple[Entry, str | None]], asked: dict[int, tuple[Entry, str | None]]
    ) -> Iterator[Callable[[], Request]]:
        last, pictures = None, None
        for number, (entry, prompt) in enumerate(questions):
            if pictures is None or entry is not last:
                last, pictures = entry, Shared(partial(self._read, entry))
            if prompt is None:
                error = entry.error or "no prompt was given, and the entry has none"
                pictures = Shared(partial(self._read, replace(entry, error=error)))
            asked[number] = replace(entry, data=None), prompt
            yield partial(self._request, prompt, pictures)

    def _read(self, entry: Entry) -> list[Picture]:
        from ..generation import make_pictures

        if entry.error is not None:
            raise InputError(entry.error)
        return make_pictures(self._processor, entry.data)

    def _request(self, prompt: str | None, pictures: Shared[list[Picture]]) -> Request:
        from ..generation import make_request

        options = self._options
        return make_request(
            self._processor,
            "" if prompt is None else self._prompt(prompt),
            pictures,
            options.sampling,
            logprobs=options.logprobs,
        )


def _shared_prompt(processor: Processor, options: AnswerOptions, most: int | None, text: str) -> Shared[Prompt]:
    """most: regions of an answer."""
    from ..generation import make_prompt

    return Shared(partial(make_prompt, processor, text, constrain=options.constrain, max_regions=most))


def _row(
    entry: Entry, prompt: str | None, generation: Generation | None = None, error: Exception | None = None
) -> dict[str, Any]:
    """A row: what `generate --format jsonl` prints of this answer, without the times, so that a row depends on nothing
    but its question. Every row has the same keys; `error`, the last one, is None for an answer."""
    row = {"id": entry.id, "image": entry.image, "prompt": prompt}
    if generation is not None:
        answer = generation.to_json()
        del answer["stats"]
        return {**row, **answer, "error": None}
    reason = str(error) if isinstance(error, PgMlxError) else f"{type(error).__name__}: {error}"
    missing: dict[str, Any] = {"width": None, "height": None, "text": None, "regions": [], "malformed": []}
    return {**row, **missing, "finish_reason": None, "token_ids": [], "error": " ".join(reason.split())}
