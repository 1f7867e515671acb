"""The table of routes: what every published model starts on every kind of chip, each route once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .layout import Layout
from .passes import Pass, by_chip
from .routes import route
from .routes.base import Route


@dataclass
class Entry:
    """A route, and who takes it: an example of a pass, and the kinds of chips."""

    route: Route
    example: Pass
    chips: set[str] = field(default_factory=set)


def collect(passes: Iterable[Pass]) -> list[Entry]:
    """All routes of these passes. Two are one if they start the same kernels with the same arguments."""
    entries: dict[Route, Entry] = {}
    known: dict[tuple[Any, Any], Route] = {}
    for wanted in passes:
        for chip, operation in by_chip(wanted):
            found = known.get((chip, operation))
            if found is None:
                found = known[chip, operation] = route(operation, chip)
            entries.setdefault(found, Entry(found, wanted)).chips.add(chip.name)
    return list(entries.values())


def few_rows(entries: Sequence[Entry]) -> list[Entry]:
    """The smallest one of the routes that differ in the number of rows, keys or pictures only. Kernels, constants,
    widths, and the way in which arrays lie in their buffers are the same."""
    return _smallest(entries, _kind)


def few_widths(entries: Sequence[Entry]) -> list[Entry]:
    """The smallest one of the routes that start the same kernels with the same constants, and whose inputs lie in their
    buffers in the same way, whatever its widths."""

    def kind(found: Route) -> tuple[Any, ...]:
        started = tuple((d.kernel, d.constants) for d in found.dispatches)
        ways = tuple(_way(layout, found.operation.name)[2:] for layout in found.operation.inputs)
        return found.operation.name, started, found.missing, ways

    return _smallest(entries, kind)


def _smallest(entries: Sequence[Entry], kind: Callable[[Route], Any]) -> list[Entry]:
    """The smallest route of each kind."""
    least: dict[Any, Entry] = {}
    for entry in entries:
        key = kind(entry.route)
        if key not in least or _size(entry.route) < _size(least[key].route):
            least[key] = entry
    return list(least.values())


def _size(found: Route) -> int:
    return sum(layout.size for layout in (*found.operation.inputs, *found.operation.outputs))


def _kind(found: Route) -> tuple[Any, ...]:
    operation = found.operation
    started = tuple((d.kernel, d.constants, d.threadgroup[1:]) for d in found.dispatches)
    layouts = tuple(_way(layout, operation.name) for layout in operation.inputs)
    return operation.name, started, found.missing, found.copies, layouts, operation.arguments[:2] if started else ()


def _way(layout: Layout, operation: str) -> tuple[Any, ...]:
    """How an array lies in its buffer, without the numbers that rows, keys and pictures change."""
    width = max(layout.shape[-1:], default=1)
    if operation in ("Matmul", "AddMM") and len(layout.shape) > 1:
        widths = [size for size, step in zip(layout.shape[-2:], layout.strides[-2:], strict=True) if step <= 1]
        width = widths[0] if widths else width
    order = sorted(range(len(layout.shape)), key=lambda axis: (layout.strides[axis], axis))
    several = tuple(axis for axis in order if layout.shape[axis] > 1)
    still = tuple(step == 0 for step in layout.strides)
    how = () if layout.row_contiguous else (several, still)
    return layout.dtype, width, how, layout.offset > 0, layout.room > layout.size
