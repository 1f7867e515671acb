"""What the machine decides: the compute dtype, and whether kernels are compiled."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import mlx.core as mx

from . import blas
from .errors import InputError
from .quantization import Quantization


def on_gpu() -> bool:
    """True where MLX's default device is a GPU (Metal or CUDA)."""
    return mx.default_device() == mx.gpu


def default_dtype() -> mx.Dtype:
    """bfloat16 on a GPU; float32 on the CPU backend, where 16-bit matrix products are some 50 times slower."""
    return mx.bfloat16 if on_gpu() else mx.float32


UNPACK_ROWS = {"cpu": 3, "cpu, 3, 5 or 6 bits": 19, "metal": 512, "cuda": None}
"""From how many input rows on a packed weight is unpacked for a float product; None: never.

cpu, measured (benchmarks/cpu_products.py; one core, 33.5 M weights, ms of CPU time): the packed product 33 a row, since
it reads the weight again for each; unpacking 50, or 600 for bits that only MLX can unpack (6); the float product 25 to
32 for 3 to 8 rows, 230 for 276.
metal, not measured by us: what others report of MLX's packed product (25% slower than float on an M2, perhaps 10% on an
M3) against the memory traffic of unpacking puts the two level at 220 to 550 rows. So 224 pixels stay packed.
cuda, not measured: MLX's packed product always.
"""


def unpacks(quantization: Quantization, rows: int) -> bool:
    """Whether to unpack a weight that `rows` rows of input are multiplied by. The environment variable
    PG_MLX_UNPACK_ROWS, read once, overrides the table: a number of rows, or 0 for never."""
    if on_gpu():
        backend = "metal" if mx.metal.is_available() else "cuda"
    else:
        backend = "cpu, 3, 5 or 6 bits" if 16 % quantization.bits else "cpu"
    least = wanted_unpack_rows() or UNPACK_ROWS[backend]
    return least is not None and rows >= least


@functools.cache
def wanted_unpack_rows() -> float | None:
    """What PG_MLX_UNPACK_ROWS asks for. Cached: it is asked for with every product of a packed matrix."""
    text = os.environ.get("PG_MLX_UNPACK_ROWS", "")
    if text and not text.isdecimal():
        raise InputError(f"PG_MLX_UNPACK_ROWS is {text!r}, not a number of rows")
    return (int(text) or math.inf) if text else None


@functools.cache
def cores() -> int:
    """Cores that this process may use: as many as OMP_NUM_THREADS says, which BLAS libraries obey too, or all."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settle(*arrays: mx.array) -> bool:
    """Evaluate arrays now; False where that is impossible, inside mx.compile and the like."""
    try:
        mx.eval(arrays)
    except ValueError:
        return False
    return True


def begin(*arrays: mx.array) -> None:
    """Evaluate arrays soon, in the order of the calls: a GPU starts while Python goes on, the CPU backend finishes.
    Within mx.compile and the like it does nothing."""
    if not on_gpu():
        settle(*arrays)
        return
    with contextlib.suppress(ValueError):
        mx.async_eval(arrays)


@functools.cache
def warn_if_slow() -> None:
    """Say once, on stderr, that this Linux machine multiplies matrices with the reference BLAS."""
    if sys.platform == "linux" and not on_gpu() and blas.preload() is None:
        print(
            "pg_mlx: no fast BLAS library found, so matrix products will be some 200 times slower; install one with "
            "`apt install libopenblas0-pthread` or `pip install mkl`, and import pg_mlx before mlx.core",
            file=sys.stderr,
        )


F = TypeVar("F", bound=Callable[..., Any])


def fused(function: F) -> F:
    """Compile an elementwise function into one kernel on a GPU, and leave it alone on the CPU.

    Compiling for the CPU backend starts a C++ compiler, 0.7 s for each function.
    """
    compiled = mx.compile(function, shapeless=True)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return compiled(*arguments) if on_gpu() else function(*arguments)

    return cast(F, call)
