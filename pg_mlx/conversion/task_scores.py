"""What source and result score on pictures whose right answers are known, for the quality card.

The answers are ordinary ones, so a model is in memory as a whole, one after the other. The result must fit anyway. A
source that does not is left out: nothing of a conversion else needs it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx

from ..checkpoint.load import build, load
from ..checkpoint.open import Checkpoint
from ..paligemma import PaliGemma
from ..processor import Processor
from .peak import source_bytes
from .samples import Sample

Score = Callable[[PaliGemma, Processor, Sequence[Sample]], dict[str, float]]
"""What a model scores on some samples, by name in 0..1."""


def task_scores(
    checkpoint: Checkpoint, result: Path, score: Score, samples: Sequence[Sample]
) -> dict[str, dict[str, float]]:
    """The scores of "source" and "result"; those of the result alone if the source is too large (see peak.py).

    Raises InputError for a checkpoint that cannot be read, and as `score`.
    """
    model, processor = load(result)
    found = {"result": score(model, processor, samples)}
    del model
    mx.clear_cache()
    if source_bytes(checkpoint):
        found = {"source": score(build(checkpoint), processor, samples), **found}
        mx.clear_cache()
    return found


def score_table(scores: Mapping[str, Mapping[str, float]] | None) -> list[str]:
    """Lines of markdown: a row for each score that one of the two has; none if there are no scores."""
    if not scores:
        return []
    models = [name for name in ("source", "result") if name in scores]
    figures = list(dict.fromkeys(figure for name in models for figure in scores[name]))
    head = {"source": "Source", "result": "This model"}
    missing = [] if "source" in scores else ["The source is too large for this machine to answer as a whole.", ""]
    return [
        "",
        "Scores on the same pictures, whose right answers are known:",
        "",
        *missing,
        f"| Score | {' | '.join(head[name] for name in models)} |",
        f"|---|{'---|' * len(models)}",
        *(f"| {figure} | {' | '.join(_shown(scores[name].get(figure)) for name in models)} |" for figure in figures),
    ]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
