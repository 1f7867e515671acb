"""Questions about a scene in PaliGemma's prompt language, with their answers.

Boxes are `<loc>` y0 x0 y1 x1 of 1023, masks 16 `<seg>` after a box, records are joined by " ; "; an absent object has
the empty answer. Records stand in the order of the prompt's classes, within a class from top to bottom; captions list
from left to right. Coordinates lie on a grid of GRID steps a side, one pixel of the model's input each: nine times
fewer pieces to choose between, for an error of half such a pixel at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from demo.scenes import COLORS, SHAPES, Item, Scene

GRID = 112
TASKS = ("detect", "segment", "answer", "caption", "describe", "ocr")


@dataclass(frozen=True)
class Question:
    task: str
    prompt: str
    answer: str
    kind: str = ""
    """A finer division of `answer` questions: count, color, shape, place, presence, comparison."""


Codes = Callable[[Item], list[int]]
"""The 16 mask tokens of an item, 0..127."""


def loc(coordinate: float) -> str:
    return f"<loc{grid_loc(coordinate):04d}>"


def grid_loc(coordinate: float) -> int:
    """0..1 -> 0..1023, on the grid."""
    return round(round(coordinate * GRID) / GRID * 1023)


def record(item: Item, label: str, codes: Codes | None = None) -> str:
    x0, y0, x1, y1 = item.box
    masks = "".join(f"<seg{code:03d}>" for code in codes(item)) if codes else ""
    return f"{loc(y0)}{loc(x0)}{loc(y1)}{loc(x1)}{masks} {label}"


def matches(item: Item, label: str) -> bool:
    """Labels are a shape ("circle"), a colour ("red object") or both ("red circle")."""
    return label in (item.shape, item.name, f"{item.color} object")


def detect(scene: Scene, labels: list[str], codes: Codes | None = None) -> str:
    found = [
        record(item, label, codes)
        for label in labels
        for item in sorted(scene.items, key=lambda i: (grid_loc(i.box[1]), grid_loc(i.box[0])))
        if matches(item, label)
    ]
    return " ; ".join(found)


def caption(scene: Scene) -> str:
    names = [_with_article(item) for item in _from_left(scene)]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def describe(scene: Scene) -> str:
    where = ", ".join(f"{_with_article(item)} at the {place(item)}" for item in _from_left(scene))
    text = f"the text {scene.text}" if scene.text else "no text"
    return f"{scene.background} background, {where}, {text}"


def _with_article(item: Item) -> str:
    return f"{'an' if item.color == 'orange' else 'a'} {item.name}"


def place(item: Item) -> str:
    """One of nine: "top left", "center", "bottom" ..."""
    x, y = item.center
    words = [("top", "", "bottom")[min(2, int(y * 3))], ("left", "", "right")[min(2, int(x * 3))]]
    return " ".join(word for word in words if word) or "center"


def _from_left(scene: Scene) -> list[Item]:
    return sorted(scene.items, key=lambda i: (grid_loc(i.center[0]), i.center[1]))


def _clear_place(item: Item) -> bool:
    """False within 0.03 of a border between places, where the right answer is a matter of a pixel."""
    return all(abs(c - border) > 0.03 for c in item.center for border in (1 / 3, 2 / 3))


def ask(scene: Scene, task: str, rng: np.random.Generator, codes: Codes) -> Question:
    """A random question of one task about a scene."""
    if task == "caption":
        return Question(task, "caption en", caption(scene))
    if task == "describe":
        return Question(task, "describe en", describe(scene))
    if task == "ocr":
        return Question(task, "ocr", scene.text)
    if task == "detect":
        labels = _labels(scene, rng)
        return Question(task, f"detect {' ; '.join(labels)}", detect(scene, labels))
    if task == "segment":
        label = _present(scene, rng).name if rng.random() < 0.9 else _any_name(rng)
        return Question(task, f"segment {label}", detect(scene, [label], codes))
    return _answer(scene, rng)


def _labels(scene: Scene, rng: np.random.Generator) -> list[str]:
    item = _present(scene, rng)
    draw = rng.random()
    if draw < 0.45:
        return [item.name if rng.random() < 0.85 else _any_name(rng)]
    if draw < 0.6:
        return [item.shape if rng.random() < 0.9 else _pick(rng, SHAPES)]
    if draw < 0.7:
        return [f"{item.color} object"]
    if draw < 0.85:
        return [str(shape) for shape in rng.permutation(SHAPES)[:2]]
    others = [i.name for i in scene.items if i.name != item.name]
    return [item.name, _pick(rng, others) if others else _other(rng, item.name)]


def _answer(scene: Scene, rng: np.random.Generator) -> Question:
    items = scene.items
    shapes, colors = Counter(i.shape for i in items), Counter(i.color for i in items)
    names = Counter(i.name for i in items)
    kinds = ["count", "count", "presence", "comparison"]
    unique_shapes = [i for i in items if shapes[i.shape] == 1]
    unique_colors = [i for i in items if colors[i.color] == 1]
    unique = [i for i in items if names[i.name] == 1 and _clear_place(i)]
    kinds += ["color"] * bool(unique_shapes) + ["shape"] * bool(unique_colors) + ["place"] * bool(unique)
    kind = _pick(rng, kinds)

    if kind == "count":
        draw = rng.random()
        if draw < 0.3:
            what, number = "objects", len(items)
        elif draw < 0.7:
            shape = _present(scene, rng).shape if rng.random() < 0.75 else _pick(rng, SHAPES)
            what, number = _plural(shape), shapes[shape]
        else:
            color = _present(scene, rng).color if rng.random() < 0.75 else _pick(rng, list(COLORS))
            what, number = f"{color} objects", colors[color]
        return _question(kind, f"how many {what} are there?", str(number))
    if kind == "presence":
        name = _present(scene, rng).name if rng.random() < 0.5 else _any_name(rng)
        return _question(kind, f"is there a {name}?", "yes" if names[name] else "no")
    if kind == "comparison":
        one, two = (str(shape) for shape in rng.permutation(SHAPES)[:2])
        if rng.random() < 0.7:
            one = _present(scene, rng).shape
            two = two if two != one else _other_shape(rng, one)
            one, two = (one, two) if rng.random() < 0.5 else (two, one)
        more = shapes[one] > shapes[two]
        return _question(kind, f"are there more {_plural(one)} than {_plural(two)}?", "yes" if more else "no")
    if kind == "color":
        item = _pick_item(rng, unique_shapes)
        return _question(kind, f"what color is the {item.shape}?", item.color)
    if kind == "shape":
        item = _pick_item(rng, unique_colors)
        return _question(kind, f"what shape is the {item.color} object?", item.shape)
    item = _pick_item(rng, unique)
    return _question(kind, f"where is the {item.name}?", place(item))


def _question(kind: str, prompt: str, answer: str) -> Question:
    return Question("answer", f"answer en {prompt}", answer, kind)


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def _pick(rng: np.random.Generator, choices: list[str] | tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _pick_item(rng: np.random.Generator, items: list[Item]) -> Item:
    return items[int(rng.integers(len(items)))]


def _present(scene: Scene, rng: np.random.Generator) -> Item:
    return _pick_item(rng, scene.items)


def _any_name(rng: np.random.Generator) -> str:
    return f"{_pick(rng, list(COLORS))} {_pick(rng, SHAPES)}"


def _other(rng: np.random.Generator, name: str) -> str:
    return next(other for other in iter(lambda: _any_name(rng), None) if other != name)


def _other_shape(rng: np.random.Generator, shape: str) -> str:
    return next(other for other in iter(lambda: _pick(rng, SHAPES), None) if other != shape)
