"""This machine: what it is, and how fast it copies and multiplies. Other figures are given as fractions of these
speeds."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import __version__
from ..memory.size import machine_bytes
from ..ops import blas, device
from ..ops.device import dtype_name

_VECTOR_FLAGS = {
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16"),
    *("neon", "asimd", "asimdhp", "sve", "bf16", "i8mm"),
}
"""The flags in /proc/cpuinfo that decide how fast matrices are multiplied."""


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, with the evaluation of the arrays that they return. One call before them is
    not counted: it creates kernels and allocates memory."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        mx.eval(work())
        times.append(time.perf_counter() - start)
    return times[1:]


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """The median of `seconds`."""
    return statistics.median(seconds(work, repeats))


def description() -> dict[str, Any]:
    """Chip, memory, versions, and the settings that the program derives from them. No names of the machine or its
    user."""
    info = mx.device_info()
    dtype, reason = chosen_dtype()
    return {
        "backend": backend_name(),
        "chip": str(info.get("device_name", "unknown")),
        "architecture": str(info.get("architecture", platform.machine())),
        "cpu_cores": os.cpu_count(),
        "cpu_flags": cpu_flags(),
        "memory_bytes": machine_bytes(),
        "working_set_bytes": info.get("max_recommended_working_set_size"),
        "system": f"{platform.system()} {platform.mac_ver()[0] or platform.release()}",
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "pg_mlx": __version__,
        "dtype": dtype,
        "dtype_reason": reason,
        "blas": blas_name(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }


def backend_name() -> str:
    """The backend of MLX's default device: "Metal", "CUDA" or "CPU"."""
    if not device.is_gpu():
        return "CPU"
    return "Metal" if mx.metal.is_available() else "CUDA"


def chosen_dtype() -> tuple[str, str]:
    """The dtype that is computed in by default, and the reason."""
    name = dtype_name(device.default_dtype())
    if device.is_gpu():
        return name, "a GPU multiplies 16-bit matrices at least as fast and reads half the bytes"
    return name, "no GPU, and on the CPU 16-bit matrix products are some 50 times slower"


def cpu_flags() -> list[str]:
    """The vector and matrix units in /proc/cpuinfo; empty where that file does not exist."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    found = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return sorted(_VECTOR_FLAGS & set(found.partition(":")[2].split()))


def blas_name() -> str | None:
    """The BLAS library that the CPU backend multiplies with: the one found on Linux, Accelerate on a Mac. None: the
    slow one in MLX's wheel, or MLX was imported before pg_mlx, so that none was searched for."""
    if sys.platform == "darwin":
        return "Accelerate"
    name = blas.preload()
    if name is None or "openblas" not in name:
        return name
    import ctypes

    config = getattr(ctypes.CDLL(name), "openblas_get_config", None)
    if config is None:
        return name
    config.restype = ctypes.c_char_p
    return f"{name} ({(config() or b'').decode(errors='replace').strip()})"


def copy_bandwidth(size: int = 128 << 20) -> float:
    """Bytes read and written a second by copying `size` bytes: on the GPU, or with one thread for each CPU core. The
    best of a few attempts, since it serves as a limit."""
    if device.is_gpu():
        source = mx.zeros((size // 4,), dtype=mx.float32)
        mx.eval(source)
        return 2 * size / min(seconds(lambda: source + 1, 5))
    threads = os.cpu_count() or 1
    pairs = [(np.ones(size // threads, np.uint8), np.empty(size // threads, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        best = min(seconds(lambda: list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs)), 5))
    return 2 * threads * (size // threads) / best


def matmul_rate(dtype: mx.Dtype, size: int | None = None) -> float:
    """Floating-point operations a second of square matrix products in `dtype`; the best of a few attempts."""
    size = size or (4096 if device.is_gpu() else 1024)
    a, b = (mx.random.normal((size, size)).astype(dtype) for _ in range(2))
    mx.eval(a, b)
    return 2 * size**3 / min(seconds(lambda: a @ b, 4))
