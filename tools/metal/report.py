"""Running entries of the table, and the lines and tables that say how it went."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .checks import check
from .checks.base import Result
from .grid import Fault
from .library import Library
from .table import Entry

KNOWN_FAULTS = {("layer_normfloat32", "a thread's own [8 x float]")}
"""(kernel, memory) of faults in MLX's own kernels that are known not to change results: docs/metal.md."""


@dataclass(frozen=True)
class Outcome:
    """A checked entry. seconds: of the processor, compiling the kernels included."""

    entry: Entry
    result: Result
    seconds: float

    @property
    def faults(self) -> list[Fault]:
        """The faults that are not known."""
        kernels = [dispatch.kernel for dispatch in self.entry.route.dispatches]
        return [f for f in self.result.faults if not any((kernel, f.what) in KNOWN_FAULTS for kernel in kernels)]

    @property
    def good(self) -> bool:
        """Whether the values are right and no unknown fault was seen."""
        return self.result.good and not self.faults


def run(entries: Iterable[Entry], library: Library) -> Iterator[Outcome]:
    """Check entries, one after the other."""
    for entry in entries:
        start = time.process_time()
        result = check(entry.route, library)
        yield Outcome(entry, result, time.process_time() - start)


def line(outcome: Outcome) -> str:
    """One line about a route: operation, shapes, kernels, error, and the pass it is of."""
    found, result = outcome.entry.route, outcome.result
    shapes = " ".join(str(list(layout.shape)) for layout in found.operation.inputs)
    verdict = "ok" if outcome.good else "WRONG"
    text = f"{found.operation.name} {shapes}: {found.kernels}: {result.error:.1e} of {result.bound:.0e} {verdict}"
    text += f" ({outcome.entry.example}; {', '.join(sorted(outcome.entry.chips))})"
    for fault in result.faults:
        known = "" if fault in outcome.faults else "known: "
        text += f"\n    {known}{fault.kind} {fault.what}, byte {fault.offset}, {fault.count} times"
    return text


def summary(outcomes: Sequence[Outcome]) -> str:
    """A table in Markdown: for each operation how many routes and kernels ran, and the worst error."""
    grouped: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        grouped[outcome.entry.route.operation.name].append(outcome)
    lines = ["| operation | routes | kernels | worst error | bound |", "|---|--:|--:|--:|--:|"]
    for name, own in sorted(grouped.items()):
        kernels = {(d.kernel, d.constants) for outcome in own for d in outcome.entry.route.dispatches}
        worst = max(own, key=lambda outcome: outcome.result.error / (outcome.result.bound or 1))
        lines.append(f"| {name} | {len(own)} | {len(kernels)} | {worst.result.error:.1e} | {worst.result.bound:.0e} |")
    return "\n".join(lines)


def not_run(entries: Sequence[Entry]) -> str:
    """A table in Markdown of what is not run, and why."""
    counts = Counter((entry.route.operation.name, entry.route.missing) for entry in entries if entry.route.missing)
    lines = ["| operation | shapes | why it is not run |", "|---|--:|---|"]
    return "\n".join(lines + [f"| {name} | {count} | {why} |" for (name, why), count in sorted(counts.items())])
