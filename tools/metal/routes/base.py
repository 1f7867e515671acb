"""What a route is: the kernels that MLX starts for one operation, with everything that it gives to them.

MLX's host code is not run here. Its rules are written down again, in the modules beside this one, from its source (tag
and lines are named there) and from the names in the shipped metallib.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..air import Constant
from ..grid import Size, three
from ..layout import Layout
from ..trace import Operation


@dataclass(frozen=True)
class Input:
    """The operation's input of that number; the kernel gets the address of its first element."""

    number: int


@dataclass(frozen=True)
class Output:
    """Output 0 is the operation's result; the others are the route's scratch arrays. offset: of the element whose
    address the kernel gets."""

    number: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Value:
    """Bytes that the host code gives."""

    data: bytes


Slot = Input | Output | Value


def values(layout: str, *numbers: Any) -> Value:
    """Numbers as C has them: `layout` as in struct, "i" and "q" for 32 and 64 bits, "f" for float."""
    return Value(struct.pack("<" + layout, *numbers))


def ints(numbers: Sequence[int]) -> Value:
    """32-bit integers, one after the other."""
    return values(f"{len(numbers)}i", *numbers)


def longs(numbers: Sequence[int]) -> Value:
    """64-bit integers, one after the other."""
    return values(f"{len(numbers)}q", *numbers)


@dataclass(frozen=True)
class Dispatch:
    """One start of a kernel. constants: function constants by index. threads: of the whole grid. slots: what is bound
    to which buffer index."""

    kernel: str
    threads: Size
    threadgroup: Size
    slots: tuple[tuple[int, Slot], ...]
    constants: tuple[tuple[int, Constant], ...] = ()

    @property
    def groups(self) -> Size:
        """Threadgroups along each axis."""
        x, y, z = (-(-a // b) for a, b in zip(self.threads, self.threadgroup, strict=True))
        return x, y, z


@dataclass(frozen=True)
class Route:
    """An operation's kernels on a kind of chip.

    operation: with its inputs laid out as the kernels see them. copies: how many inputs MLX copies first, so that
    they are. scratch: arrays between kernels. missing: why it is not run here.
    """

    operation: Operation
    dispatches: tuple[Dispatch, ...] = ()
    scratch: tuple[Layout, ...] = ()
    copies: int = 0
    missing: str = ""

    @property
    def kernels(self) -> str:
        """The kernels' names."""
        return " + ".join(dispatch.kernel for dispatch in self.dispatches) or self.operation.name


def dispatch(
    kernel: str,
    slots: dict[int, Slot],
    *,
    groups: Sequence[int] | None = None,
    threads: Sequence[int] | None = None,
    threadgroup: Sequence[int],
    constants: Mapping[int, Constant] | None = None,
) -> Dispatch:
    """A dispatch by threadgroups, or by threads as MLX does for kernels that cut off the last threadgroup."""
    size = three(threadgroup)
    if groups is not None:
        x, y, z = (a * b for a, b in zip(three(groups), size, strict=True))
        whole: Size = (x, y, z)
    else:
        assert threads is not None
        whole = three(threads)
    return Dispatch(kernel, whole, size, tuple(sorted(slots.items())), tuple(sorted((constants or {}).items())))


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def block(x: int, y: int, z: int) -> Size:
    """The threadgroup that MLX takes for a plain grid: powers of two, 1024 threads at most (get_block_dims)."""
    powers, total = [0, 0, 0], 0
    while True:
        before = total
        for axis, size in enumerate((x, y, z)):
            if size >= 1 << (powers[axis] + 1):
                powers[axis] += 1
                total += 1
            if total == 10:
                break
        if total in (before, 10):
            return 1 << powers[0], 1 << powers[1], 1 << powers[2]


def type_name(dtype: str) -> str:
    """A dtype as steel kernels write it."""
    return f"{dtype}_" if dtype == "bool" else dtype


def type_string(dtype: str) -> str:
    """A dtype as quantized and attention kernels write it."""
    return f"{dtype}_t" if dtype in ("bfloat16", "float16") else {"float32": "float"}[dtype]
