"""Pictures with labelled objects to examples: which prompt is asked, and what its answer lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import InputError
from .example import Example
from .formats import DataOptions, LabelledPicture
from .regions import SEPARATOR, answer_text, in_order


def examples_of(pictures: Sequence[LabelledPicture], classes: Sequence[str], options: DataOptions) -> list[Example]:
    """A row for each picture that asks for all classes; with `per_class` one for each class in it, and one for a class
    that is not in it, which is another one from picture to picture. A picture without objects has the empty answer.

    classes: in the order of the prompt. Raises InputError if there are none.
    """
    if not pictures:
        return []
    if not classes:
        raise InputError(f"{pictures[0].where}: there is no labelled object and no class to ask for")
    if not options.per_class:
        return [_example(picture, classes, options.task) for picture in pictures]
    rows = []
    for number, picture in enumerate(pictures):
        labels = {one.label for one in picture.objects}
        present, absent = ([label for label in classes if (label in labels) is there] for there in (True, False))
        asked = [*present, absent[number % len(absent)]] if absent else present
        rows += [_example(picture, [label], options.task) for label in asked]
    return rows


def _example(picture: LabelledPicture, classes: Sequence[str], task: str) -> Example:
    kept = [one for one in picture.objects if one.label in classes]
    objects = in_order(kept, classes, picture.size)
    suffix = answer_text(objects, picture.size, [None] * len(objects)) if task == "detect" else ""  # or the encoder's
    prefix = f"{task} {SEPARATOR.join(classes)}"
    return Example(picture.image, prefix, suffix, objects, task, picture.size, picture.where)


def with_longest_codes(example: Example) -> Example:
    """The example with an answer as long as the mask encoder will make it, for counting tokens."""
    if example.kind != "segment" or not any(one.mask for one in example.objects) or example.image_size is None:
        return example
    codes = [(0,) * 16 if one.mask else None for one in example.objects]
    return replace(example, suffix=answer_text(example.objects, example.image_size, codes))
