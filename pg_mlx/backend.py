"""What the machine decides: the compute dtype, and whether kernels are compiled."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import mlx.core as mx

from . import blas


def on_gpu() -> bool:
    """True where MLX's default device is a GPU (Metal or CUDA)."""
    return mx.default_device() == mx.gpu


def default_dtype() -> mx.Dtype:
    """bfloat16 on a GPU; float32 on the CPU backend, where 16-bit matrix products are some 50 times slower."""
    return mx.bfloat16 if on_gpu() else mx.float32


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
