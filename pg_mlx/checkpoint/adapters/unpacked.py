"""A quantized checkpoint read as floats, for an adapter to be merged into."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ...config import PaliGemmaConfig
from ...quantization import Quantization
from ..check import packing
from ..layouts import WeightSpec
from ..tensors import Source


class UnpackedSource(Source):
    """A Source whose quantized modules appear as float32 weights, each unpacked when it is read.

    config, specs: those of the source (see Checkpoint), which its tensors fit.
    """

    def __init__(self, source: Source, config: PaliGemmaConfig, specs: Sequence[WeightSpec]):
        self._source = source
        self._packed: dict[str, Quantization] = {
            module: packing(source.shapes, module, spec.columns, config)
            for spec in specs
            for module in spec.sources
            if f"{module}.scales" in source.shapes
        }
        self.shapes = {name: shape for spec in specs for name, shape in spec.expected()}

    def read(self, name: str) -> mx.array:
        """The tensor, not yet evaluated: float32 where it is quantized, else in its stored dtype."""
        module, _, part = name.rpartition(".")
        quantization = self._packed.get(module)
        if quantization is None or part != "weight":
            return self._source.read(name)
        return quantization.unpack({part: self._source.read(f"{module}.{part}") for part in quantization.parts})

    def stored_bytes(self, name: str) -> int:
        """The size of the tensor as it is stored, quantized or not, in bytes."""
        module, _, part = name.rpartition(".")
        quantization = self._packed.get(module) if part == "weight" else None
        parts = quantization.parts if quantization else (part,)
        return sum(self._source.stored_bytes(f"{module}.{part}") for part in parts)
