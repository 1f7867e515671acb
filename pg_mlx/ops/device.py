"""The one place that decides which operations compute the model: a GPU's, or those made for MLX's CPU backend.

The environment variable PG_MLX_OPS (gpu, cpu or auto) and `use` override the decision, so that a machine without a GPU
can test and count what a Mac runs: compiled functions, look-ahead, 16 bits, no NumPy. MLX's default device stays as it
is. Call these functions through the module (`device.gpu_ops()`); a test forbids importing them by name.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, cast

import mlx.core as mx

from ..errors import InputError
from . import blas

_CHOICES = {"auto": None, "gpu": True, "cpu": False}


def _choice(ops: str) -> bool | None:
    if ops not in _CHOICES:
        raise InputError(f"PG_MLX_OPS is {ops!r}, but must be gpu, cpu or auto")
    return _CHOICES[ops]


_wanted = _choice(os.environ.get("PG_MLX_OPS") or "auto")


@contextlib.contextmanager
def use(ops: str) -> Iterator[None]:
    """Within the block, in all threads, compute by "gpu" or "cpu" operations, or ("auto") by the default device's.

    Raises InputError for another word.
    """
    global _wanted
    before, _wanted = _wanted, _choice(ops)
    try:
        yield
    finally:
        _wanted = before


def is_gpu() -> bool:
    """Whether MLX's default device is a GPU (Metal or CUDA)."""
    return mx.default_device() == mx.gpu


def gpu_ops() -> bool:
    """Whether the operations are those for a GPU."""
    return is_gpu() if _wanted is None else _wanted


def backend() -> Literal["cpu", "metal", "cuda"]:
    """The backend whose operations are used."""
    if not gpu_ops():
        return "cpu"
    return "cuda" if is_gpu() and not mx.metal.is_available() else "metal"


def default_dtype() -> mx.Dtype:
    """bfloat16 on a GPU; float32 on the CPU backend, where 16-bit matrix products are some 50 times slower."""
    return mx.bfloat16 if gpu_ops() else mx.float32


def dtype_name(dtype: mx.Dtype) -> str:
    """The name of a dtype as people write it: "bfloat16"."""
    return str(dtype).removeprefix("mlx.core.")


@functools.cache
def cores() -> int:
    """Cores that this process may use: the number in OMP_NUM_THREADS, which BLAS libraries obey too, or all."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_of_thread = threading.local()


@contextlib.contextmanager
def gradients() -> Iterator[None]:
    """Within the block, in this thread, gradients are traced: nothing is evaluated, and the model uses MLX's operations
    only.

    An array that is evaluated while gradients are traced stays in memory until their end, and what NumPy computes
    cannot be computed again by mx.checkpoint.
    """
    before, _of_thread.gradients = traces_gradients(), True
    try:
        yield
    finally:
        _of_thread.gradients = before


def traces_gradients() -> bool:
    """Whether this thread is within `gradients`."""
    return getattr(_of_thread, "gradients", False)


def evaluate(*arrays: mx.array) -> bool:
    """mx.eval; returns False where arrays cannot be evaluated (inside mx.compile or mx.vjp) or must not be (within
    `gradients`)."""
    if traces_gradients():
        return False
    try:
        mx.eval(arrays)
    except ValueError:
        return False
    return True


def evaluate_soon(*arrays: mx.array) -> None:
    """mx.async_eval, in the order of the calls: a GPU starts while Python goes on. With the CPU's operations it is
    `evaluate`. Inside mx.compile, mx.vjp and `gradients` it does nothing."""
    if not gpu_ops() or traces_gradients():
        evaluate(*arrays)
        return
    with contextlib.suppress(ValueError):
        mx.async_eval(arrays)


def finish() -> None:
    """Wait for what `evaluate_soon` and mx.async_eval have begun in this thread. Work that is still under way when its
    thread or the process ends aborts the process. A failure of work that nobody waits for is no matter any more."""
    with contextlib.suppress(RuntimeError):
        mx.synchronize()


@functools.cache
def warn_if_slow() -> None:
    """Say once, on stderr, that this Linux machine multiplies matrices with the reference BLAS."""
    if sys.platform == "linux" and not is_gpu() and blas.preload() is None:
        print(
            "pg_mlx: no fast BLAS library found, so matrix products will be some 200 times slower; install one with "
            "`apt install libopenblas0-pthread` or `pip install mkl`, and import pg_mlx before mlx.core",
            file=sys.stderr,
        )


F = TypeVar("F", bound=Callable[..., Any])


def fused(function: F) -> F:
    """Compile an elementwise function into one kernel for a GPU, and leave it alone on the CPU.

    Compiling for the CPU backend starts a C++ compiler, 0.7 s for each function.
    """
    of_thread = threading.local()  # emptied by Python when a thread ends, or MLX would need the interpreter after that

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        if not gpu_ops():
            return function(*arguments)
        try:
            compiled = of_thread.compiled
        except AttributeError:
            compiled = of_thread.compiled = mx.compile(function, shapeless=True)
        return compiled(*arguments)

    return cast(F, call)
