"""A shipped kernel, made to run here: `Kernel(name, constants)(buffers, threads, threadgroup)`."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from . import bounds
from .air import Argument, Constant, Module, translate
from .bits import Array
from .grid import Fault, Size, native, run_grid
from .intrinsics import Unsupported
from .library import Library

POSITIONS = {  # as in native/runtime.h
    "thread_position_in_grid": 0,
    "threadgroup_position_in_grid": 3,
    "thread_position_in_threadgroup": 6,
    "threads_per_grid": 9,
    "threadgroups_per_grid": 12,
    "threads_per_threadgroup": 15,
    "thread_index_in_simdgroup": 18,
    "simdgroup_index_in_threadgroup": 19,
    "threads_per_simdgroup": 20,
    "simdgroups_per_threadgroup": 21,
    "thread_index_in_threadgroup": 22,
}

UNBOUND_BYTES = 256
"""What a kernel sees of a buffer that its function constants leave out: zeros."""


class NoLLVM(Exception):
    """llvmlite is not installed, or cannot make code for this machine."""


@cache
def _llvm() -> Any:
    try:
        import llvmlite.binding as llvm
    except ImportError as error:
        raise NoLLVM(f"llvmlite cannot be imported ({error}); install pg_mlx[metal]") from None
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    library = native()
    for name in ("pg_simd", "pg_matrix", "pg_barrier", "pg_fault"):
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    llvm.add_symbol("__truncsfbf2", ctypes.cast(library.pg_to_bfloat16, ctypes.c_void_p).value)
    return llvm


def require_llvm() -> None:
    """Raises NoLLVM or grid.NoCompiler where kernels cannot be compiled."""
    _llvm()


class Kernel:
    """A kernel of a metallib, translated with checks of its accesses, and compiled.

    constants: its function constants by index. Raises KeyError when there is no such kernel, Unsupported when it does
    what this program does not know, NoLLVM, or grid.NoCompiler.
    """

    def __init__(self, library: Library, name: str, constants: Mapping[int, Constant] | None = None):
        llvm = _llvm()
        self.name = name
        with llvm.parse_bitcode(library[name]) as raw:
            module = translate(name, str(raw), constants or {})
        self.arguments = module.arguments
        checked = bounds.instrument(module)
        if checked.unchecked:
            raise Unsupported(f"{name}: {len(checked.unchecked)} accesses to unknown memory: {checked.unchecked[0]}")
        self._sites = checked.sites
        self._engine = _compiled(llvm, checked.text + _entry(module))
        self._entry = self._engine.get_function_address("pg_entry")
        self._shared = [
            (self._engine.get_global_value_address(share), _shared_size(checked.text, share)) for share in module.shared
        ]

    def __call__(
        self,
        buffers: Mapping[int, Array],
        threads: Sequence[int],
        threadgroup: Sequence[int],
        groups: Sequence[Size] | None = None,
    ) -> list[Fault]:
        """Run it over a grid, in place: see `grid.run_grid`. Returns its accesses outside of memory."""
        unbound = {a.index for a in self.arguments if a.kind == "buffer" and a.optional} - set(buffers)
        buffers = {**buffers, **dict.fromkeys(unbound, np.zeros(UNBOUND_BYTES, np.uint8))}
        faults = run_grid(self._entry, buffers, threads, threadgroup, groups, self._shared)
        return [replace(f, what=self._sites[f.site]) if f.site >= 0 else f for f in faults]


def _shared_size(text: str, share: str) -> int:
    types = dict(re.findall(r"^(%\S+|%\"[^\"]+\") = type (.*)$", text, re.M))
    variable = re.search(rf"^@{share} = global (.*) zeroinitializer, align", text, re.M)
    assert variable is not None
    return bounds.size_of(variable[1], types)


def _entry(module: Module) -> str:
    """`pg_entry(buffers, positions)`: fetches the arguments and calls the kernel."""
    lines, given, limits = [], [], []
    for number, argument in enumerate(module.arguments):
        lines += _fetch(number, argument)
        given.append(f"{argument.type} %a{number}")
        if argument.kind == "buffer":
            limits += [f"ptr %l{number}", f"i64 %s{number}"]
    call = f"  call void @{module.name}({', '.join(given + limits)})"
    return "\n".join(["define void @pg_entry(ptr %b, ptr %u) {", *lines, call, "  ret void", "}", ""])


def _fetch(n: int, argument: Argument) -> list[str]:
    if argument.kind == "buffer":
        lines = [
            f"  %p{n}.{part} = getelementptr [3 x ptr], ptr %b, i64 {argument.index}, i64 {part}" for part in range(3)
        ]
        lines += [f"  %{name}{n} = load ptr, ptr %p{n}.{part}" for part, name in enumerate("alh")]
        lines += [f"  %x{n} = ptrtoint ptr %l{n} to i64", f"  %y{n} = ptrtoint ptr %h{n} to i64"]
        return [*lines, f"  %s{n} = sub i64 %y{n}, %x{n}"]
    if argument.kind not in POSITIONS:
        raise Unsupported(f"the argument {argument.kind}")
    vector = re.fullmatch(r"<(\d) x (i\d+)>|(i\d+)", argument.type)
    if vector is None:
        raise Unsupported(f"a position as {argument.type}")
    wide, element = (f"<{vector[1]} x i32>", vector[2]) if vector[1] else ("i32", vector[3])
    lines = [f"  %p{n} = getelementptr i32, ptr %u, i64 {POSITIONS[argument.kind]}"]
    if element == "i32":
        return [*lines, f"  %a{n} = load {wide}, ptr %p{n}, align 4"]
    return [*lines, f"  %w{n} = load {wide}, ptr %p{n}, align 4", f"  %a{n} = trunc {wide} %w{n} to {argument.type}"]


def _compiled(llvm: Any, text: str) -> Any:
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=1, jit=True
    )
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = target.triple, str(target.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_unrolling = True
    for _ in range(2):  # checks that unrolling has settled keep no array in memory the second time
        builder = llvm.create_pass_builder(target, options)
        builder.getModulePassManager().run(module, builder)
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    engine.run_static_constructors()
    return engine
