"""pg-mlx doctor: check that this machine computes right."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .options import Parser, add_model_options, load_options

if TYPE_CHECKING:
    from ..measure.kernels import Check

DESCRIPTION = (
    "Run the bundled checkpoint on this machine and compare every result and every fused kernel it goes through."
)

EPILOG = """\
Without a GPU the CPU's answers are compared with those stored beside the checkpoint; with one, also GPU and CPU.

  %(prog)s                        a line a check
  %(prog)s --json > doctor.json   for a bug report: holds no names of machine, user or files
  %(prog)s --model ./pg2-4bit     the kernels in the shapes and packings of another checkpoint
  %(prog)s --report mac.json      every open question about Macs, in about ten minutes: mac.json, and the page mac.md
                                  which says what to set; --quick takes a minute. Fetches nothing, and names nobody

docs/performance.md describes the report. exit code: 0 healthy, 1 not, 2 for a wrong input, 130 for Ctrl-C.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The options of this command."""
    p = Parser(program, DESCRIPTION, EPILOG)
    add_model_options(p)
    p.add_argument("--json", action="store_true", help="one JSON object on stdout")
    p.add_argument("--report", metavar="FILE", help="measure, too: write FILE.json and a page FILE.md, both or neither")
    p.add_argument("--quick", action="store_true", help="a report within a minute, to see that it works")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    """Check and print; returns the exit code: 1 if something is wrong. Raises PgMlxError."""
    args = parser(program).parse_args(argv)
    if args.quick and not args.report:
        raise InputError("--quick goes with --report")
    if args.report and args.json:
        raise InputError("--report writes its JSON into a file: leave out --json")
    if args.report:
        return _report(args, program)

    from ..measure import machine

    print(f"{program}: measuring how fast memory is copied ...", file=sys.stderr)
    described = {**machine.description(), "copied_bytes_per_second": machine.copy_bandwidth()}
    checks = list(_checks(args, program))
    sick = [check for check in checks if not check.healthy]
    warnings = _warnings(described)
    if args.json:
        report = {
            "healthy": not sick,
            "machine": described,
            "warnings": warnings,
            "checks": [check.report() for check in checks],
        }
        print(json.dumps(report, indent=1))
    else:
        print("\n".join([*_describe(described), "", *map(_line, checks), "", *warnings]))
        print(f"not healthy: {len(sick)} of {len(checks)} checks failed" if sick else f"healthy: {len(checks)} checks")
    return 1 if sick else 0


def _checks(args: argparse.Namespace, program: str) -> Iterator[Check]:
    from ..checkpoint.load import load_model_with
    from ..checkpoint.open import locate
    from ..demo import CHECKPOINT
    from ..measure.report.checks import all_checks

    options = replace(load_options(args), keep_quantized=True)
    path = locate(args.model, args.revision) if args.model else CHECKPOINT
    yield from all_checks(load_model_with(path, options), lambda what: print(f"{program}: {what} ...", file=sys.stderr))


def _report(args: argparse.Namespace, program: str) -> int:
    from ..measure.report.write import targets

    targets(args.report)  # before minutes pass
    from ..checkpoint.load import compute_dtype, load_with
    from ..checkpoint.open import locate
    from ..measure.report.context import Context
    from ..measure.report.run import make_report, shapes_here
    from ..measure.report.write import write

    options = load_options(args)
    shapes, pace = shapes_here(args.quick)
    context = Context(shapes, pace, dtype=compute_dtype(args.dtype))
    if args.model:
        path = locate(args.model, args.revision)
        context.given = lambda: load_with(path, options)
        context.private = (str(path.resolve()), str(path), args.model, path.name)
    report = make_report(context, lambda what: print(f"{program}: {what}", file=sys.stderr), args.quick)
    files = write(report, args.report)
    failed = [part.name for part in report.parts if part.status == "failed"]
    if failed:
        print(f"{program}: {len(failed)} of {len(report.parts)} parts failed: {', '.join(failed)}", file=sys.stderr)
    print(
        f"{'healthy' if report.healthy else 'NOT healthy'}: {files[1]} says what was found, {files[0]} has every figure"
    )
    return 0 if report.healthy else 1


def _describe(machine: dict[str, Any]) -> list[str]:
    working_set = machine["working_set_bytes"]
    flags = f" ({' '.join(machine['cpu_flags'])})" if machine["cpu_flags"] else ""
    return [
        f"chip         {machine['chip']}, {machine['cpu_cores']} CPU cores{flags}",
        f"memory       {machine['memory_bytes'] / 1e9:.1f} GB, copied at "
        f"{machine['copied_bytes_per_second'] / 1e9:.1f} GB/s",
        f"working set  {f'up to {working_set / 1e9:.1f} GB on the GPU' if working_set else 'no limit known'}",
        f"backend      {'no GPU, so MLX computes on the CPU' if machine['backend'] == 'CPU' else machine['backend']}",
        f"computes in  {machine['dtype']}: {machine['dtype_reason']}",
        f"BLAS         {machine['blas'] or 'none found'}",
        f"versions     MLX {machine['mlx']}, pg_mlx {machine['pg_mlx']}, Python {machine['python']}, "
        f"{machine['system']}",
    ]


def _warnings(machine: dict[str, Any]) -> list[str]:
    """Findings that make it slow, not wrong."""
    if machine["backend"] == "CPU" and machine["blas"] is None:
        return ["warning: without a fast BLAS library matrix products are some 200 times slower"]
    return []


def _line(check: Check) -> str:
    verdict = "ok  " if check.healthy else "FAIL"
    return (
        f"{verdict} {check.error:7.1e} of {check.bound:.0e}  {check.name}{f' ({check.route})' if check.route else ''}"
    )
