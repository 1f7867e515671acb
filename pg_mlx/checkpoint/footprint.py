"""How much memory a checkpoint will take, computed from the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mlx.core as mx

from ..memory.estimate import pass_bytes
from ..quantization import Quantization
from .check import packing
from .layouts import WeightSpec
from .open import Checkpoint
from .tensors import Source


def needed_bytes(checkpoint: Checkpoint, dtype: mx.Dtype) -> int:
    """The most that MLX should hold at a time, of loading the model and of one answer about one picture, with a prompt
    and an answer of common length (see memory.estimate), with the adapters that were put onto it. dtype: to compute in.
    """
    source = checkpoint.source
    loaded = most = 0
    for spec in checkpoint.specs:
        held = sum(_held(spec, name, source, dtype) for name in _tensors(spec, source))
        cast = sum(source.stored_bytes(name) for name in _tensors(spec, source) if _is_cast(spec, name, source, dtype))
        stacked = held if len(spec.sources) > 1 else 0
        adapters = [source.adapter_bytes(module, dtype.size) for module in spec.sources]
        loaded += held + sum(beside for beside, _ in adapters)
        most = max(most, loaded + cast + stacked + sum(merging for _, merging in adapters))
    tower, decoder = (_packing(checkpoint, name) for name in ("mlp.fc1", "mlp.gate_up_proj"))
    return max(most, loaded + pass_bytes(checkpoint.config, dtype, tower, decoder))


def weight_bytes(checkpoint: Checkpoint, dtype: mx.Dtype) -> int:
    """What the weights of the loaded model take, packed ones as they are."""
    source = checkpoint.source
    return sum(_held(spec, name, source, dtype) for spec in checkpoint.specs for name in _tensors(spec, source))


def float_bytes(checkpoint: Checkpoint) -> int:
    """What the weights of the loaded model take if all of them are float32."""
    return 4 * sum(math.prod(shape) for spec in checkpoint.specs for _, shape in spec.expected())


def _packing(checkpoint: Checkpoint, name: str) -> Quantization | None:
    """How the layers of that name are packed: the first one that is."""
    shapes = checkpoint.source.shapes
    layers = (spec for spec in checkpoint.specs if spec.target.endswith(name) and f"{spec.sources[0]}.scales" in shapes)
    return next((packing(shapes, spec.sources[0], spec.columns, checkpoint.config) for spec in layers), None)


def _tensors(spec: WeightSpec, source: Source) -> Iterator[str]:
    names = (f"{module}.{part}" for module in spec.sources for part in ("weight", "scales", "biases", "bias"))
    return (name for name in names if name in source.shapes)


def _held(spec: WeightSpec, name: str, source: Source, dtype: mx.Dtype) -> int:
    """Bytes of a tensor in the model. As `assemble.fill` has it: norms in float32, packed words and one-byte scales as
    they are, the rest in dtype."""
    module, _, part = name.rpartition(".")
    if f"{module}.scales" in source.shapes and spec.kind == "array":
        return spec.rows[0] * spec.columns * dtype.size if part == "weight" else 0
    if not _is_float(name, source):
        return source.stored_bytes(name)
    itemsize = 4 if spec.kind in ("rms_norm", "layer_norm") else dtype.size
    return math.prod(source.shapes[name]) * itemsize


def _is_float(name: str, source: Source) -> bool:
    module, _, part = name.rpartition(".")
    packed = f"{module}.scales" in source.shapes
    return not packed or part in ("biases", "bias") or (part == "scales" and f"{module}.biases" in source.shapes)


def _is_cast(spec: WeightSpec, name: str, source: Source, dtype: mx.Dtype) -> bool:
    return _is_float(name, source) and source.stored_bytes(name) != _held(spec, name, source, dtype)
