"""Linear layers and the embedding table, float or quantized, behind one interface.

One class serves both forms, because the rest of the model never asks which one it has. Three things are needed that
`mlx.nn`'s pair does not offer: a layer that computes some outputs only (the last layer needs keys and values
everywhere, but queries at one position); a stand-in for a fused projection whose parts are quantized differently; and
the choice between multiplying packed weights and unpacking them first.
"""

from __future__ import annotations

from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from .ops import products
from .quantization import Packed, Quantization

M = TypeVar("M", bound="Matrix")

Ids = range | list[int]
"""Token ids whose entries of the embedding are wanted: a range with a step of 1, or a list."""


_PACKED = ("weight", "scales", "biases", "row_scale", "up", "down")


class Matrix(nn.Module):
    """A weight matrix, float or quantized; base of Linear and Embedding.

    weight: float [outputs, columns], or packed: uint32 [outputs, columns * bits / 32] with its scales. A packed one may
    have an adapter beside it: `up` [outputs, R] and `down` [R, columns], whose product is added to the weight, and
    `row_scale` [outputs], by which the packed weight is multiplied first.
    """

    def __init__(self, outputs: int, columns: int, quantization: Quantization | None = None):
        super().__init__()
        self.quantization = quantization
        self.num_outputs, self.num_columns = outputs, columns
        self.weight = mx.zeros((outputs, columns))  # a placeholder, never evaluated: loading replaces it

    @property
    def packed(self) -> Packed | None:
        """The quantized weight without its adapter; None for a float one."""
        q = self.quantization
        return None if q is None else Packed(q, self.weight, self.scales, self.get("biases"))

    def multiply(self, x: mx.array) -> mx.array:
        """x [..., columns] -> x @ weight.T [..., outputs], in the promoted dtype of x and the weight or scales."""
        y = products.multiply(x, self.packed or self.weight)
        if "row_scale" in self:
            y = y * self.row_scale
        return y + (x @ self.down.T) @ self.up.T if "up" in self else y

    def _share(self, part: M, index: slice | mx.array) -> M:
        """Fill a smaller matrix with some outputs of this one: a slice shares its memory, an index int [n] copies."""
        for name in ("weight", "scales", "biases", "bias", "up", "row_scale"):
            if name in self:
                part[name] = self[name][index]
        if "down" in self:
            part.down = self.down
        return part

    def dequantized(self, dtype: mx.Dtype, ids: mx.array | None = None) -> mx.array:
        """The float weight [outputs, columns], with its adapter. With ids int [...] only those, [..., columns]."""
        return self._adapted(self._stored(dtype, ids), ids)

    def dequantize_in_place(self) -> None:
        """Hold the float32 weight, with its adapter, instead of the packed one. For the CPU backend."""
        if self.packed is None:
            return
        self.weight, self.quantization = self._adapted(products.unpack(self.packed)), None
        for name in _PACKED[1:]:
            self.pop(name, None)
        mx.eval(self.weight)

    @property
    def packed_bytes(self) -> int:
        """Bytes of all arrays that `dequantize_in_place` replaces."""
        return sum(self[name].nbytes for name in _PACKED if name in self)

    def _adapted(self, weight: mx.array, ids: mx.array | None = None) -> mx.array:
        dtype = weight.dtype
        if "row_scale" in self:
            weight = weight * _chosen(self.row_scale, ids)[..., None].astype(dtype)
        if "up" in self:
            weight = weight + _chosen(self.up, ids).astype(dtype) @ self.down.astype(dtype)
        return weight

    def _stored(self, dtype: mx.Dtype, ids: mx.array | None = None) -> mx.array:
        """As `dequantized`, without the adapter."""
        packed = self.packed
        if packed is None:
            return _chosen(self.weight, ids).astype(dtype)
        return (packed if ids is None else packed.outputs(ids)).dequantize(dtype)


def matrices(module: nn.Module) -> list[Matrix]:
    """All weight matrices within the module."""
    return [part for part in module.modules() if isinstance(part, Matrix)]


def unpacks_any(module: nn.Module, rows: int) -> bool:
    """Whether a matrix within the module would be unpacked for an input of that many rows (B * T)."""
    return any(part.quantization is not None and products.unpacks(part.quantization, rows) for part in matrices(module))


def _chosen(array: mx.array, ids: mx.array | None) -> mx.array:
    return array if ids is None else array[ids]


class Linear(Matrix):
    """y = x @ weight.T + bias: x [..., columns] -> y [..., outputs]."""

    def __init__(self, columns: int, outputs: int, bias: bool = False, quantization: Quantization | None = None):
        super().__init__(outputs, columns, quantization)
        if bias:
            self.bias = mx.zeros((outputs,))

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., columns] -> [..., outputs]."""
        if "bias" not in self:
            return self.multiply(x)
        y, bias = self.unbiased(x)
        return y if bias is None else y + bias

    def unbiased(self, x: mx.array) -> tuple[mx.array, mx.array | None]:
        """x [..., columns] -> [..., outputs], and the bias [outputs] if the product could not add it: the caller does,
        in its next kernel."""
        if "bias" not in self:
            return self.multiply(x), None
        if "row_scale" in self or "up" in self:
            return self.multiply(x), self.bias
        return products.multiply_add(x, self.packed or self.weight, self.bias)

    def outputs(self, start: int, stop: int) -> Linear:
        """The layer that computes outputs start..stop-1 only. It shares memory with this one."""
        part = Linear(self.num_columns, stop - start, quantization=self.quantization)
        return self._share(part, slice(start, stop))


class Parallel(nn.Module):
    """Several layers that read one input, results side by side: a fused projection of differently packed parts."""

    def __init__(self, parts: list[Linear]):
        super().__init__()
        self.parts = parts

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., columns] -> [..., outputs], those of the first part first."""
        return mx.concatenate([part(x) for part in self.parts], axis=-1)

    def outputs(self, start: int, stop: int) -> Parallel:
        """As Linear.outputs."""
        chosen, first = [], 0
        for part in self.parts:
            size = part.num_outputs
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                chosen.append(part.outputs(low, high))
            first += size
        return Parallel(chosen)


class Embedding(Matrix):
    """A lookup table, an output head, or both: PaliGemma ties the two unless fine-tuning has trained them apart."""

    def __call__(self, ids: mx.array) -> mx.array:
        """ids int [...] -> [..., columns], unscaled, in the dtype that the table is stored in.

        With bfloat16 scales a packed row is computed in bfloat16, in one kernel of a GPU. float32 would take two more
        in each step; the roundings add 2 % to the error of 6 bits, and a fifth to that of 8 bits. Rows of a table with
        an adapter are float32.
        """
        stored = self.weight if self.packed is None else self.scales
        exact = "up" in self or "row_scale" in self or not mx.issubdtype(stored.dtype, mx.floating)
        return self.dequantized(mx.float32 if exact else stored.dtype, ids)

    def as_head(self, x: mx.array, ids: Ids | None = None) -> mx.array:
        """x [..., columns] -> logits [..., V] in x's dtype; [..., len(ids)] for some ids."""
        return self.multiply(x) if ids is None else self.outputs(ids).multiply(x)

    def outputs(self, ids: Ids) -> Embedding:
        """The table of some ids only. For a range it shares memory with this one, for a list it is a copy."""
        index = slice(ids.start, ids.stop) if isinstance(ids, range) else mx.array(ids)
        return self._share(Embedding(len(ids), self.num_columns, self.quantization), index)
