"""The shipped kernels for tests, or a skip that says why they cannot be had."""

from __future__ import annotations

from functools import cache

import pytest

from tools.metal import table
from tools.metal.grid import NoCompiler, native
from tools.metal.kernel import NoLLVM, require_llvm
from tools.metal.library import Library
from tools.metal.passes import passes
from tools.metal.wheel import NoMetallib, library


def shipped() -> Library:
    """The kernels of the installed MLX version; skips the test where a part that is needed cannot be had."""
    require_compiler()
    found = _shipped()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@cache
def _shipped() -> Library | str:
    """The kernels, or why there are none; tried once, since a download may take a while to fail."""
    try:
        require_llvm()
        return library()
    except (NoMetallib, NoLLVM) as error:
        return str(error)


def require_compiler() -> None:
    """Skip the test where there is no C compiler."""
    try:
        native()
    except NoCompiler as error:
        pytest.skip(str(error))


@cache
def routes() -> list[table.Entry]:
    """The table of all models."""
    return table.collect(passes())
