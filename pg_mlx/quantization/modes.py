"""The ways MLX packs a matrix, and how to recognise one from the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from ..errors import InputError

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUPS = (32, 64, 128)
FLOAT_MODES = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
"""Bits and group size, which these modes fix. Their scales are one byte, and they have no biases."""


@dataclass(frozen=True)
class Quantization:
    """How a matrix [outputs, columns] is packed: groups of `group_size` columns share a scale (and, in affine mode, a
    bias). Raises InputError for a combination that MLX does not have."""

    bits: int
    group_size: int
    mode: str = "affine"

    def __post_init__(self) -> None:
        if self.mode == "affine":
            if self.bits not in AFFINE_BITS:
                raise InputError(f"{self.bits} bits are not possible; affine mode has {_listed(AFFINE_BITS)}")
            if self.group_size not in AFFINE_GROUPS:
                raise InputError(f"groups of {self.group_size} are not possible; there are {_listed(AFFINE_GROUPS)}")
        elif self.mode not in FLOAT_MODES:
            raise InputError(f"no mode {self.mode!r}; there are affine, {', '.join(FLOAT_MODES)}")
        elif (self.bits, self.group_size) != FLOAT_MODES[self.mode]:
            bits, group_size = FLOAT_MODES[self.mode]
            raise InputError(f"{self.mode} always has {bits} bits in groups of {group_size}")

    @classmethod
    def recognise(cls, words: int, groups: int, columns: int, has_biases: bool) -> Quantization:
        """The packing of a matrix with `columns` columns, from its weight (uint32 [outputs, words]) and scales
        ([outputs, groups]). Raises InputError if no mode packs like that."""
        if not groups or words * 32 % columns or columns % groups:
            raise InputError(f"weight [.., {words}] and scales [.., {groups}] do not pack {columns} columns")
        bits, group_size = words * 32 // columns, columns // groups
        if has_biases:
            return cls(bits, group_size)
        mode = next((mode for mode, numbers in FLOAT_MODES.items() if numbers == (bits, group_size)), None)
        if mode is None:
            raise InputError(f"{bits} bits in groups of {group_size} without biases are not a mode of MLX")
        return cls(bits, group_size, mode)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the arrays that a packed matrix consists of."""
        return ("weight", "scales", "biases") if self.mode == "affine" else ("weight", "scales")

    def fits(self, columns: int) -> bool:
        """Whether so many columns are whole groups; no others can be packed."""
        return columns % self.group_size == 0

    def pack(self, weight: mx.array) -> dict[str, mx.array]:
        """weight float [outputs, columns] -> weight uint32 [outputs, columns * bits / 32], scales and, in affine mode,
        biases [outputs, columns / group_size]."""
        arrays = mx.quantize(weight, group_size=self.group_size, bits=self.bits, mode=self.mode)
        return dict(zip(self.parts, arrays, strict=True))

    def unpack(self, arrays: Mapping[str, mx.array], dtype: mx.Dtype = mx.float32) -> mx.array:
        """The weight, scales and biases of `pack` -> a float dtype [outputs, columns].

        MLX computes in the dtype of the scales, so for a float32 result 16-bit ones are widened first: rounding each
        product and sum to bfloat16 would add a fifth to the error of 8 bits.
        """
        scales, biases = arrays["scales"], arrays.get("biases")
        if biases is not None and dtype == mx.float32:
            scales, biases = scales.astype(dtype), biases.astype(dtype)
        return mx.dequantize(arrays["weight"], scales, biases, self.group_size, self.bits, self.mode, dtype=dtype)


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
