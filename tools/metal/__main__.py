"""Run MLX's shipped Metal kernels on this machine, in the shapes of PaliGemma: see docs/metal.md.

python -m tools.metal                           each kind of route once, with few rows
python -m tools.metal --all                     every route
python -m tools.metal --model paligemma-3b --only rope
python -m tools.metal --list                    the table, without running anything
python -m tools.metal --m5                      what an M5 runs that cannot be run here
"""

from __future__ import annotations

import argparse
import sys

from pg_mlx.config import SIZES

from . import report, table
from .grid import NoCompiler
from .kernel import NoLLVM
from .library import BadLibrary
from .passes import passes
from .wheel import NoMetallib, library


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 if all is right, 1 if a route is not, 2 if something needed is missing."""
    parser = argparse.ArgumentParser(prog="python -m tools.metal", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=SIZES, action="append", help="only this model; may be given several times")
    parser.add_argument("--only", default="", metavar="TEXT", help="only routes with this text in a kernel's name")
    parser.add_argument("--all", action="store_true", help="every route, not each kind once")
    parser.add_argument("--list", action="store_true", help="print the table; run nothing")
    parser.add_argument("--m5", action="store_true", help="list what an M5 runs that cannot be run here")
    options = parser.parse_args(arguments)
    entries = [e for e in table.collect(passes(options.model or tuple(SIZES))) if options.only in e.route.kernels]
    if options.m5:
        print(report.not_run([e for e in entries if any(chip.startswith("M5") for chip in e.chips)]))
        return 0
    chosen = entries if options.all else table.few_rows(entries)
    if options.list:
        for entry in chosen:
            shapes = " ".join(f"{list(x.shape)}/{list(x.strides)}+{x.offset}" for x in entry.route.operation.inputs)
            print(
                f"{entry.route.operation.name} {shapes}: {entry.route.missing or entry.route.kernels} ({entry.example})"
            )
        return 0
    try:
        outcomes = []
        for outcome in report.run((e for e in chosen if not e.route.missing), library()):
            outcomes.append(outcome)
            print(report.line(outcome), flush=True)
    except (NoMetallib, BadLibrary, NoLLVM, NoCompiler) as error:
        print(f"tools.metal: {error}", file=sys.stderr)
        return 2
    wrong = [outcome for outcome in outcomes if not outcome.good]
    print(f"\n{report.summary(outcomes)}\n\n{report.not_run(entries)}\n")
    print(f"{len(outcomes)} routes ran, {len(wrong)} are wrong; {sum(o.seconds for o in outcomes):.0f} s of one core")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
