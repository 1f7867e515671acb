"""Metal source as C++: runs what `mx.fast.metal_kernel` is given, on NumPy arrays, without a GPU.

The signature is made as MLX makes it: inputs in order, `name_shape`, `name_strides` and `name_ndim` where the source
has them, then outputs; template arguments as constants. Threads are fibers. Enough of Metal for simple kernels is in
native/shim.hpp; results are those of IEEE arithmetic on this machine's processor, not of a GPU's.
"""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from . import memory
from .bits import Array
from .grid import NATIVE, Fault, compile_native, native, run_grid, three

_TYPES = {"float32": "float", "uint16": "bfloat16_t", "bool": "bool", "int8": "int8_t", "uint8": "uint8_t"}
_TYPES |= {name: f"{name}_t" for name in ("int16", "int32", "uint32", "int64", "uint64")}

_POSITIONS = {  # as in native/runtime.h
    "thread_position_in_grid": 0,
    "threadgroup_position_in_grid": 3,
    "thread_position_in_threadgroup": 6,
    "threads_per_grid": 9,
    "grid_size": 9,
    "threadgroups_per_grid": 12,
    "threads_per_threadgroup": 15,
    "dispatch_threads_per_threadgroup": 15,
    "thread_index_in_simdgroup": 18,
    "simdgroup_index_in_threadgroup": 19,
    "threads_per_simdgroup": 20,
    "thread_execution_width": 20,
    "simdgroups_per_threadgroup": 21,
    "thread_index_in_threadgroup": 22,
}

Template = int | bool | str


class OutOfBounds(Exception):
    """A kernel read or wrote outside its memory. `faults` says where."""

    def __init__(self, name: str, faults: list[Fault]):
        super().__init__(f"{name} left its memory: {', '.join(map(str, faults))}")
        self.faults = faults


def run(
    source: str,
    header: str,
    inputs: Mapping[str, Array | float | int],
    outputs: Mapping[str, tuple[Sequence[int], str]],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    template: Mapping[str, Template] | None = None,
) -> dict[str, Array]:
    """Run the body of a kernel and return its outputs by name.

    inputs: by name, in the kernel's order; bfloat16 arrays are uint16 arrays of their bits (see bits.py), numbers are
    arrays without dimensions. Strides are kept, as where MLX is not to make inputs contiguous. outputs: shape and dtype
    of each ("bfloat16" gives a uint16 array). They start filled with NaN, or with the largest number. grid: in threads,
    as MLX wants it. template: the constants, a dtype by its name ("bfloat16"). Raises OutOfBounds, grid.NoCompiler, or
    RuntimeError with the compiler's message.

    The kernel runs twice, with buffers that end, and that begin, where memory does. If the results differ, it has read
    outside.
    """
    first, second = (
        _run(source, header, inputs, outputs, grid, threadgroup, template or {}, at) for at in (False, True)
    )
    if any(first[name].tobytes() != second[name].tobytes() for name in outputs):
        raise OutOfBounds("the kernel", [Fault("read", "some buffer", 0, -1, (0, 0, 0), 0, 1)])
    return first


def _run(
    source: str,
    header: str,
    inputs: Mapping[str, Array | float | int],
    outputs: Mapping[str, tuple[Sequence[int], str]],
    grid: Sequence[int],
    threadgroup: Sequence[int],
    template: Mapping[str, Template],
    at_start: bool,
) -> dict[str, Array]:
    arrays = {name: _placed(value, at_start) for name, value in inputs.items()}
    results = {name: _output(tuple(shape), dtype, at_start) for name, (shape, dtype) in outputs.items()}
    buffers: list[Array] = []
    parameters: list[str] = []
    for name, array in arrays.items():
        kind = _TYPES[array.dtype.name]
        parameters.append(f"const {kind}& {name}" if array.ndim == 0 else f"const {kind}* {name}")
        buffers.append(array)
        strides = np.array(array.strides, np.int64) // array.itemsize
        for suffix, about, type_ in (
            ("shape", np.array(array.shape, np.int32), "const int32_t*"),
            ("strides", strides, "const int64_t*"),
            ("ndim", np.array(array.ndim, np.int32), "const int32_t&"),
        ):
            if array.ndim > 0 and f"{name}_{suffix}" in source:
                parameters.append(f"{type_} {name}_{suffix}")
                buffers.append(memory.place(about, at_start))
    for name, array in results.items():
        parameters.append(f"{_TYPES[array.dtype.name]}* {name}")
        buffers.append(array)
    library = _library(_text(source, header, tuple(parameters), dict(template)))
    address = ctypes.cast(library.pg_entry, ctypes.c_void_p).value
    assert address is not None
    size = [min(most, all_) for most, all_ in zip(three(threadgroup), three(grid), strict=True)]
    faults = run_grid(address, dict(enumerate(buffers)), grid, size)
    if faults:
        raise OutOfBounds("the kernel", faults)
    return {name: np.array(array) for name, array in results.items()}


def _placed(value: Array | float | int, at_start: bool) -> Array:
    """A copy between guard pages, with the array's own strides; what lies between its elements is NaN."""
    if not isinstance(value, np.ndarray):
        value = np.array(value, np.float32 if isinstance(value, float) else np.int32)
    if value.flags.c_contiguous:
        return memory.place(value, at_start)
    steps = [step // value.itemsize for step in value.strides]
    reach = 1 + sum((size - 1) * step for size, step in zip(value.shape, steps, strict=True))
    held = memory.empty((reach,), value.dtype, at_start)
    held.view(np.uint8)[...] = 0xFF
    placed = np.lib.stride_tricks.as_strided(held, value.shape, value.strides, subok=True)
    placed[...] = value
    return placed


def _output(shape: tuple[int, ...], dtype: str, at_start: bool) -> Array:
    array = memory.empty(shape, _bits(dtype), at_start)
    array.reshape(-1).view(np.uint8)[...] = 0xFF
    return array


def _text(source: str, header: str, parameters: tuple[str, ...], template: dict[str, Template]) -> str:
    """The C++ program: the kernel as a template, and an entry that fetches its arguments."""
    kinds = {name: "typename" if isinstance(value, str) else type(value).__name__ for name, value in template.items()}
    values = [_TYPES[_bits(value)] if isinstance(value, str) else str(value).lower() for value in template.values()]
    used = [name for name in _POSITIONS if re.search(rf"\b{name}\b", source)]
    body = _static(header), _static(source)
    places = [f"{_vector(name)} {name}" for name in used]
    fetched = [
        f"*({p.removeprefix('const ').split('&')[0]}*)b[{i}].data"
        if "&" in p
        else f"({p.rsplit(' ', 1)[0]})b[{i}].data"
        for i, p in enumerate(parameters)
    ]
    found = [
        f"{{p[{at}], p[{at + 1}], p[{at + 2}]}}" if _vector(name) == "uint3" else f"p[{at}]"
        for name, at in ((name, _POSITIONS[name]) for name in used)
    ]
    head = f"template <{', '.join(f'{kind} {name}' for name, kind in kinds.items())}>\n" if template else ""
    call = f"pg_kernel{'<' + ', '.join(values) + '>' if template else ''}"
    return (
        f'#include "shim.hpp"\n{body[0]}\n{head}void pg_kernel({", ".join((*parameters, *places))}) {{\n{body[1]}\n}}\n'
        f'extern "C" void pg_entry(buffer* b, uint32_t* p) {{ {call}({", ".join((*fetched, *found))}); }}\n'
    )


def _vector(name: str) -> str:
    return "uint3" if _POSITIONS[name] < 18 else "uint"


def _bits(dtype: str) -> str:
    return "uint16" if dtype == "bfloat16" else dtype


def _static(text: str) -> str:
    """Variables of threadgroup memory become static; pointers and references to it plain ones."""
    text = re.sub(r"\bthreadgroup\b(?=[^;=()\[\]{}]*[*&])", "", text)
    return re.sub(r"\bthreadgroup\b", "static", text)


@cache
def _library(text: str) -> Any:
    native()  # offers what the kernel calls
    with tempfile.TemporaryDirectory() as folder:
        program, target = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        program.write_text(text)
        checks = ("-fsanitize=bounds", "-fsanitize-undefined-trap-on-error")
        compile_native([program], target, "-std=c++20", f"-I{NATIVE}", "-ffp-contract=off", *checks)
        return ctypes.CDLL(str(target))
