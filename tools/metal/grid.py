"""Runs a compiled kernel over a grid: buffers from NumPy, threads as fibers, faults as values."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from . import memory
from .bits import Array

NATIVE = Path(__file__).with_name("native")
LANES = 32
MAX_BUFFERS = 32
MAX_FAULTS = 64

Size = tuple[int, int, int]


class NoCompiler(Exception):
    """There is no C or C++ compiler."""


class BadGrid(ValueError):
    """A grid that no GPU would run."""


@dataclass(frozen=True)
class Fault:
    """A place in a kernel that left its memory. kind: "read", "write" or "crash" (the kernel ended there). what: the
    memory. offset: of the byte that was touched first, counted from the memory's start. site: the number of the place,
    or -1. threadgroup, thread: which thread that was. count: how often it happened."""

    kind: str
    what: str
    offset: int
    site: int
    threadgroup: Size
    thread: int
    count: int


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("low", ctypes.c_void_p), ("high", ctypes.c_void_p))


class _Shared(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_uint64))


class _Fault(ctypes.Structure):
    _fields_ = (
        ("site", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("offset", ctypes.c_int64),
        ("group", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32),
        ("count", ctypes.c_uint64),
    )


def compile_native(sources: Sequence[Path], target: Path, *flags: str) -> None:
    """Compile C or C++ files into a shared library. Raises NoCompiler, or RuntimeError with the compiler's message."""
    compiler = os.environ.get("CXX", "c++") if sources[0].suffix == ".cpp" else os.environ.get("CC", "cc")
    lookup = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    command = [compiler, "-O2", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE", f"-I{NATIVE}", *lookup, *flags]
    try:
        subprocess.run([*command, "-o", target, *sources, "-lm"], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise NoCompiler(f"there is no compiler {compiler!r}") from None
    except subprocess.CalledProcessError as error:
        raise RuntimeError(error.stderr[:4000]) from None


@cache
def native() -> ctypes.CDLL:
    """The C part, compiled once a process. Raises NoCompiler."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "pg_metal.so")
        compile_native([NATIVE / "fibers.c", NATIVE / "bfloat16.c"], target)
        return ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)


def three(size: Sequence[int]) -> Size:
    """One, two or three sizes as three."""
    x, y, z = (*size, 1, 1, 1)[:3]
    return x, y, z


def run_grid(
    entry: int,
    buffers: Mapping[int, Array],
    threads: Sequence[int],
    threadgroup: Sequence[int],
    groups: Sequence[Size] | None = None,
    shared: Sequence[tuple[int, int]] = (),
) -> list[Fault]:
    """Run a kernel, in place, and return what it did wrong.

    entry: the address of its entry. buffers: by index; an array that is not of `memory.place` is copied first, so only
    placed arrays show what was written. threads: of the whole grid. groups: the threadgroups to run; None for all.
    shared: address and size of each variable of threadgroup memory. Raises BadGrid.
    """
    grid, size = three(threads), three(threadgroup)
    if min(grid) < 1 or min(size) < 1 or np.prod(size) > 1024:
        raise BadGrid(f"a grid of {grid} threads in groups of {size}")
    counts = [-(-all_ // one) for all_, one in zip(grid, size, strict=True)]
    chosen = (
        list(groups)
        if groups is not None
        else [(x, y, z) for z, y, x in itertools.product(*(range(count) for count in reversed(counts)))]
    )
    if any(not all(0 <= at < count for at, count in zip(group, counts, strict=True)) for group in chosen):
        raise BadGrid(f"a threadgroup that is not in the grid of {counts}")
    table = (_Buffer * MAX_BUFFERS)()
    placed = {index: array if memory.owner(array) else memory.place(array) for index, array in buffers.items()}
    for index, array in placed.items():
        own = memory.owner(array)
        assert own is not None
        table[index] = _Buffer(array.ctypes.data, own.start, own.stop)
    found = (_Fault * MAX_FAULTS)()
    shares = (_Shared * max(1, len(shared)))(*(_Shared(*share) for share in shared))
    count = native().pg_run(
        ctypes.c_void_p(entry),
        table,
        (ctypes.c_uint32 * 3)(*grid),
        (ctypes.c_uint32 * 3)(*size),
        np.array(chosen, np.uint32).ctypes.data_as(ctypes.c_void_p),
        len(chosen),
        shares,
        len(shared),
        found,
        MAX_FAULTS,
    )
    if count < 0:
        raise MemoryError("no memory for the threads' stacks")
    kinds = ("read", "write", "crash")
    faults = []
    for f in found[:count]:
        what, offset, site = ("", f.offset, f.site) if kinds[f.kind] != "crash" else (*_nearest(placed, f.offset), -1)
        faults.append(Fault(kinds[f.kind], what, offset, site, (f.group[0], f.group[1], f.group[2]), f.thread, f.count))
    for index, array in placed.items():
        own = memory.owner(array)
        if own is not None and own.spoiled is not None:
            faults.append(Fault("write", f"buffer {index}", own.spoiled, -1, (0, 0, 0), 0, 1))
    return faults


def _nearest(buffers: Mapping[int, Array], address: int) -> tuple[str, int]:
    """The buffer beside which an address is, and the address counted from its start."""
    for index, array in buffers.items():
        own = memory.owner(array)
        if own is not None and own.start - 2 * memory.PAGE <= address <= own.stop + memory.PAGE:
            return f"buffer {index}", address - own.start
    return "no buffer, or an array of the kernel", address
