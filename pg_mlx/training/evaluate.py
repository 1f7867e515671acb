"""How good a model is on examples: its loss, and its answers by the ordinary way, scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..generation import Generation, stream_batch
from ..paligemma import PaliGemma
from ..processor import Processor
from .batches import Batches
from .example import Example
from .loss import LossOptions, inputs_of, loss_count, loss_sum
from .prompts import with_longest_codes
from .scores import METRICS, Predicted, Scores, score

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[int, int], None]
"""(rows done, rows in all)."""

MOST_PATCHES = 8192
"""Image tokens of the answers that are computed at a time."""
ROOM = 8
"""How many more tokens an answer may have than the longest true one. Without a limit a model that has not learnt yet
would babble on."""
LEAST_SHARE = 1.25
SHOWN = 12
"""Answers that are drawn."""


@dataclass(frozen=True)
class Evaluation:
    """What was found."""

    loss: float | None
    scores: Scores
    predicted: tuple[Predicted, ...]

    def picture(self, processor: Processor) -> Image.Image | None:
        """The first answers, drawn; None if there are none."""
        from .sheet import sheet

        rows = [replace(one.example, suffix=one.text, objects=()) for one in self.predicted[:SHOWN]]
        return sheet(rows, SHOWN, mask_decoder=processor.mask_decoder) if rows else None


def evaluate(
    model: PaliGemma,
    processor: Processor,
    examples: Sequence[Example],
    batches: Batches | None,
    metrics: Sequence[str],
    loss: LossOptions | None = None,
    *,
    batch_size: int = 8,
    constrain: bool = False,
    cancelled: Callable[[], bool] | None = None,
    progress: Progress = lambda done, total: None,
) -> Evaluation | None:
    """The loss and the scores of a model as it is, adapters in place. None if `cancelled` became true meanwhile.

    batches: makes batches of the examples; without it no loss is computed. metrics: "loss" and names of scores.METRICS.
    constrain: see `answers`. progress: called with the rows done and all; a row of which only the loss is known
    counts half.
    Raises InputError for a picture that cannot be read, and as scores.score.
    """
    wanted = [name for name in metrics if name in METRICS]
    rows, mean = len(examples), None
    parts = 2 if batches and "loss" in metrics and wanted else 1

    def report(done: int) -> None:
        progress(done // parts, rows)

    if batches and "loss" in metrics:
        mean = mean_loss(model, examples, batches, loss or LossOptions(), batch_size, report)
    if cancelled and cancelled():
        return None
    if not wanted or not examples:
        return Evaluation(mean, Scores(len(examples)), ())
    predicted = answers(
        model, processor, examples,
        scored="map" in wanted, batch_size=batch_size, constrain=constrain, cancelled=cancelled,
        progress=lambda done: report((parts - 1) * rows + done),
    )  # fmt: skip
    if predicted is None:
        return None
    return Evaluation(mean, score(predicted, wanted, processor.mask_decoder), tuple(predicted))


def mean_loss(
    model: PaliGemma,
    examples: Sequence[Example],
    batches: Batches,
    options: LossOptions,
    batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> float | None:
    """The loss over all examples together, without dropout or augmentation; None for no example. progress: called with
    the number of examples done."""
    total, count = 0.0, 0
    for first in range(0, len(examples), batch_size):
        batch = batches.batch_of(examples[first : first + batch_size])
        total += float(loss_sum(model, inputs_of(batch, options), options).item())  # type: ignore[arg-type]
        count += loss_count(batch, options)
        progress(min(first + batch_size, len(examples)))
    return total / count if count else None


def answers(
    model: PaliGemma,
    processor: Processor,
    examples: Sequence[Example],
    *,
    scored: bool = True,
    batch_size: int = 8,
    constrain: bool = False,
    cancelled: Callable[[], bool] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Predicted] | None:
    """The greedy answers to all examples, in their order; None if `cancelled` became true meanwhile.

    scored: boxes get scores, as mAP needs. constrain: answers to detect and segment prompts are records with labels of
    the prompt and nothing else; other prompts are then refused with InputError. progress: called with the number of
    answers done.
    """
    longest = max(len(processor.suffix_ids(with_longest_codes(row).suffix)) for row in examples)
    rows = max(1, min(batch_size, MOST_PATCHES // model.config.vision.num_patches))
    found = dict[int, Generation]()
    for index, generation in stream_batch(
        model,
        processor,
        [row.prefix for row in examples],
        [row.image for row in examples],
        batch_size=rows,
        max_tokens=min(8192, max(longest + ROOM, round(LEAST_SHARE * longest))),
        constrain=constrain,
        logprobs=scored and any(row.kind != "text" for row in examples),
        cancelled=cancelled,
    ):
        found[index] = generation
        progress(len(found))
    if cancelled and cancelled():
        return None
    return [
        Predicted(row, found[index].text, found[index].regions if row.kind != "text" else None)
        for index, row in enumerate(examples)
    ]


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """So many examples, from all over a sequence."""
    count = min(count, len(examples))
    return [examples[number * len(examples) // count] for number in range(count)]
