"""A packed checkpoint read as floats, for an adapter to be merged into."""

from __future__ import annotations

import mlx.core as mx

from ...config import PaliGemmaConfig
from ...quantization import Quantization
from ..check import check, packing
from ..layouts import weight_specs
from ..tensors import Source


class UnpackedSource(Source):
    """A Source whose packed modules appear as float32 weights, each unpacked when it is read. Raises InputError if the
    tensors do not fit the config."""

    def __init__(self, source: Source, config: PaliGemmaConfig):
        plan = list(weight_specs(config))
        check(plan, source.shapes, config)
        self._source = source
        self._packed: dict[str, Quantization] = {
            module: packing(source.shapes, module, spec.columns, config)
            for spec in plan
            for module in spec.sources
            if f"{module}.scales" in source.shapes
        }
        self.shapes = {name: shape for spec in plan for name, shape in spec.expected()}

    def read(self, name: str) -> mx.array:
        """The tensor, not yet evaluated; as stored unless it is packed."""
        module, _, part = name.rpartition(".")
        quantization = self._packed.get(module)
        if quantization is None or part != "weight":
            return self._source.read(name)
        return quantization.unpack({part: self._source.read(f"{module}.{part}") for part in quantization.parts})
