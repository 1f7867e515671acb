"""What a checkpoint will take of memory, told by the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx

from ..config import PaliGemmaConfig
from ..memory.estimate import pass_bytes
from ..quantization import Quantization
from .check import check, packing
from .layouts import WeightSpec, infer_dimensions, weight_specs
from .tensors import SafetensorsHeaders


def needed_bytes(source: SafetensorsHeaders, raw_config: Mapping[str, Any], dtype: mx.Dtype) -> int:
    """The most that MLX should hold at a time, of loading the model and of one answer about one picture, with a prompt
    and an answer of common length. Adapters are not counted. Raises InputError for tensors that do not fit config.json.
    """
    config = PaliGemmaConfig.from_dict(raw_config, infer_dimensions(source.shapes))
    plan = list(weight_specs(config))
    check(plan, source.shapes, config)
    loaded = most = 0
    for spec in plan:
        held = sum(_held(spec, name, source, dtype) for name in _tensors(spec, source))
        cast = sum(source.sizes[name] for name in _tensors(spec, source) if _is_cast(spec, name, source, dtype))
        stacked = held if len(spec.sources) > 1 else 0
        loaded += held
        most = max(most, loaded + cast + stacked)
    tower, decoder = (_packing(plan, name, source, config) for name in ("mlp.fc1", "mlp.gate_up_proj"))
    return max(most, loaded + pass_bytes(config, dtype, tower, decoder))


def _packing(
    plan: list[WeightSpec], name: str, source: SafetensorsHeaders, config: PaliGemmaConfig
) -> Quantization | None:
    """How the layers of that name are packed: the first one that is."""
    layers = (spec for spec in plan if spec.target.endswith(name) and f"{spec.sources[0]}.scales" in source.shapes)
    return next((packing(source.shapes, spec.sources[0], spec.columns, config) for spec in layers), None)


def _tensors(spec: WeightSpec, source: SafetensorsHeaders) -> Iterator[str]:
    names = (f"{module}.{part}" for module in spec.sources for part in ("weight", "scales", "biases", "bias"))
    return (name for name in names if name in source.shapes)


def _held(spec: WeightSpec, name: str, source: SafetensorsHeaders, dtype: mx.Dtype) -> int:
    """Bytes of a tensor in the model. As `assemble.fill` has it: norms in float32, packed words and one-byte scales as
    they are, the rest in dtype."""
    module, _, part = name.rpartition(".")
    if f"{module}.scales" in source.shapes and spec.kind == "array":
        return spec.rows[0] * spec.columns * dtype.size if part == "weight" else 0
    if not _is_float(name, source):
        return source.sizes[name]
    itemsize = 4 if spec.kind in ("rms_norm", "layer_norm") else dtype.size
    return math.prod(source.shapes[name]) * itemsize


def _is_float(name: str, source: SafetensorsHeaders) -> bool:
    module, _, part = name.rpartition(".")
    packed = f"{module}.scales" in source.shapes
    return not packed or part in ("biases", "bias") or (part == "scales" and f"{module}.biases" in source.shapes)


def _is_cast(spec: WeightSpec, name: str, source: SafetensorsHeaders, dtype: mx.Dtype) -> bool:
    return _is_float(name, source) and source.sizes[name] != _held(spec, name, source, dtype)
