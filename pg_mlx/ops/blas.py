"""A fast BLAS for MLX's Linux CPU backend, put in place before MLX is imported.

MLX's Linux wheel links the reference BLAS. Symbols are looked up in globally loaded libraries first. So it is enough to
load a good library before the first `import mlx.core`; after it, it is too late. A float32 product of 256x2048
by 2048x16384 then takes 0.06 s instead of 12 s on two cores.
"""

from __future__ import annotations

import functools
import os
import sys

FULL_FLOAT32 = "MLX_ENABLE_TF32"
"""MLX's switch for float32 products of 10 bits of mantissa, which an M5 and CUDA make unless it is "0"."""

_NAMES = ("libopenblas.so.0", "libmkl_rt.so.2", "libmkl_rt.so.3", "libblis.so.4")


@functools.cache
def preload() -> str | None:
    """Load the library that the environment variable PG_MLX_BLAS names, else the first one found; returns its name.

    None where there is none, none is needed (not Linux), or MLX was imported before.
    """
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return None
    import ctypes
    from pathlib import Path

    chosen = os.environ.get("PG_MLX_BLAS")
    from_pip = [str(path) for path in Path(sys.prefix, "lib").glob("libmkl_rt.so.*")]
    for name in [chosen] if chosen else [*_NAMES, *from_pip]:
        try:
            library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        if hasattr(library, "cblas_sgemm"):
            return name
    return None


def full_float32() -> None:
    """Have float32 products keep all their bits, unless the environment says otherwise. MLX reads the variable once, so
    a process that has multiplied before may find it too late."""
    os.environ.setdefault(FULL_FLOAT32, "0")
