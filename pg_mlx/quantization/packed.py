"""A packed matrix as one value."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx

from .modes import Quantization


class Packed(NamedTuple):
    """weight uint32 [outputs, columns * bits / 32]; scales and, in affine mode, biases [outputs, columns / group_size].
    Affine scales and biases are floats of any dtype; other modes have uint8 scales and no biases."""

    quantization: Quantization
    weight: mx.array
    scales: mx.array
    biases: mx.array | None

    @property
    def num_outputs(self) -> int:
        """Outputs of the weight [outputs, columns]."""
        return self.weight.shape[0]

    @property
    def num_columns(self) -> int:
        """Columns of the unpacked weight [outputs, columns]."""
        return self.weight.shape[-1] * 32 // self.quantization.bits

    def outputs(self, index: slice | mx.array) -> Packed:
        """Some of its outputs: a slice shares memory, an index int [...] copies."""
        biases = None if self.biases is None else self.biases[index]
        return Packed(self.quantization, self.weight[index], self.scales[index], biases)

    def dequantize(self, dtype: mx.Dtype) -> mx.array:
        """The weight in a float dtype: [outputs, columns]. float32 is computed in float32, whatever the scales' dtype;
        16 bits are computed in the scales' dtype."""
        arrays = {"weight": self.weight, "scales": self.scales}
        if self.biases is not None:
            arrays["biases"] = self.biases
        return self.quantization.unpack(arrays, dtype)

    def matmul(self, x: mx.array, stream: Any = None) -> mx.array:
        """x [..., columns] -> x @ weight.T [..., outputs], by the packed weight as it is."""
        q = self.quantization
        return mx.quantized_matmul(
            x,
            self.weight,
            self.scales,
            self.biases,
            transpose=True,
            group_size=q.group_size,
            bits=q.bits,
            mode=q.mode,
            stream=stream,
        )
