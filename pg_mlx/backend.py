"""What the machine decides: the BLAS library, the compute dtype, and whether kernels are compiled."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

_BLAS_NAMES = ("libopenblas.so.0", "libmkl_rt.so.2", "libmkl_rt.so.3", "libblis.so.4")


@functools.cache
def preload_blas() -> str | None:
    """Put a fast BLAS in front of the reference one that MLX's Linux CPU wheel links.

    Symbols are looked up in globally loaded libraries first, so loading one before `import mlx.core`
    is enough: a float32 product of 256x2048 by 2048x16384 falls from 12 s to 0.06 s on two cores.
    `PG_MLX_BLAS` names another library file. Returns the name that was loaded, None if there is none
    (or none is needed: not Linux).
    """
    if sys.platform != "linux":
        return None
    chosen = os.environ.get("PG_MLX_BLAS")
    in_environment = [str(path) for path in Path(sys.prefix, "lib").glob("libmkl_rt.so.*")]
    for name in [chosen] if chosen else [*_BLAS_NAMES, *in_environment]:
        try:
            library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if hasattr(library, "cblas_sgemm"):
            return name
    return None


preload_blas()

import mlx.core as mx  # noqa: E402  (only after the BLAS library)


def on_gpu() -> bool:
    """True where MLX's default device is a GPU (Metal or CUDA)."""
    return mx.default_device() == mx.gpu


def default_dtype() -> mx.Dtype:
    """bfloat16 on a GPU; float32 on the CPU backend, where 16-bit matrix products are some 50 times slower."""
    return mx.bfloat16 if on_gpu() else mx.float32


@functools.cache
def warn_if_slow() -> None:
    """Say once, on stderr, that this Linux machine multiplies matrices with the reference BLAS."""
    if sys.platform == "linux" and not on_gpu() and preload_blas() is None:
        print(
            "pg_mlx: no fast BLAS library found, matrix products will be some 200 times slower; "
            "mend it with `apt install libopenblas0-pthread` or `pip install mkl`",
            file=sys.stderr,
        )


def fused(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Compile an elementwise function into one kernel on a GPU, and leave it alone on the CPU.

    Compiling for the CPU backend starts a C++ compiler, 0.7 s for each function.
    """
    compiled = mx.compile(function, shapeless=True)

    @functools.wraps(function)
    def call(*arrays: mx.array) -> mx.array:
        return compiled(*arrays) if on_gpu() else function(*arrays)

    return call
