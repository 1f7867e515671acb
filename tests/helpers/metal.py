"""The shipped kernels for tests, or a skip that says why they cannot be had."""

from __future__ import annotations

from functools import cache

import pytest

from tools.metal import report, table
from tools.metal.grid import NoCompiler, native
from tools.metal.kernel import NoLLVM, require_llvm
from tools.metal.library import Library
from tools.metal.passes import passes
from tools.metal.wheel import NoMetallib, library


def shipped() -> Library:
    """The kernels of the installed MLX version; skips the test where a part that is needed cannot be had."""
    require_compiler()
    try:
        require_llvm()
        return library()
    except (NoMetallib, NoLLVM) as error:
        pytest.skip(str(error))


def require_compiler() -> None:
    """Skip the test where there is no C compiler."""
    try:
        native()
    except NoCompiler as error:
        pytest.skip(str(error))


@cache
def routes_of(model: str) -> list[table.Entry]:
    """The table of one model."""
    return table.collect(passes((model,)))


def run_routes(model: str) -> list[report.Outcome]:
    """Each kind of route of a model, run once; prints a line each, and the summary."""
    kernels, entries = shipped(), routes_of(model)
    outcomes = []
    for outcome in report.run((e for e in table.few_rows(entries) if not e.route.missing), kernels):
        print(report.line(outcome))
        outcomes.append(outcome)
    print(f"\n{report.summary(outcomes)}\n\n{report.not_run(entries)}")
    return outcomes
