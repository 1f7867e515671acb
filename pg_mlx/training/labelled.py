"""Labelled data as pictures on which a conversion calibrates, is compared and scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..conversion.samples import AskedPictures, Sample
from ..errors import InputError
from ..files.regular import expanded
from ..paligemma import PaliGemma
from ..processor import Processor
from .card import FIGURES
from .dataset import read_to_evaluate
from .evaluate import evaluate
from .formats import DataOptions, find
from .scores import possible_metrics
from .splits import find_splits


def holds_labels(path: str | Path) -> bool:
    """Whether a file or folder is in a format that training reads. A folder of pictures alone is in none."""
    try:
        for split in find_splits(expanded(path)).values():
            find(split.path)
    except InputError:
        return False
    return True


def read_labelled(path: str | Path, prefix: str | None = None) -> AskedPictures:
    """The pictures and prompts of labelled data, and how to score answers: the train split, or the only one.

    prefix: the prompt of rows that have none. Raises DataError, with a line for each fault, and InputError if the data
    cannot be found or read at all.
    """
    _, examples = read_to_evaluate(path, DataOptions(prefix=prefix), splits=("train", "valid", "test"))
    answers = {(example.image, example.prefix): example for example in examples}

    def scores(model: PaliGemma, processor: Processor, samples: Sequence[Sample]) -> dict[str, float]:
        rows = [answers[sample.image, sample.prompt] for sample in samples]
        found = evaluate(model, processor, rows, None, possible_metrics())
        assert found is not None
        figures = found.scores.to_json()
        return {name: figures[key] for key, name in FIGURES.items() if key in figures}

    folder = expanded(path)
    samples = [Sample(example.image, example.prefix) for example in answers.values()]
    return AskedPictures(folder if folder.is_dir() else folder.parent, samples, scores)
