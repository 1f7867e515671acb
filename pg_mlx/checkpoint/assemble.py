"""Putting canonical tensors where the model wants them: fused, folded, cast, packed ones as they are."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config import PaliGemmaConfig
from ..errors import InputError
from ..linear import Embedding, Linear, Parallel
from ..paligemma import PaliGemma
from ..quantization import Quantization
from .check import packing
from .layouts import WeightSpec
from .tensors import Source

Matrix = tuple[Quantization | None, dict[str, mx.array]]
"""How a stored matrix is packed (None: float), and its arrays by name, as linear.Linear has them."""


def fill(model: PaliGemma, spec: WeightSpec, source: Source, config: PaliGemmaConfig, dtype: mx.Dtype) -> Any:
    """Put a spec's tensors where they belong in the model; returns them, a tree of arrays not yet evaluated.

    config: the model's. dtype: of float weights; norms are float32. Raises InputError for a tensor of a wrong dtype.
    """
    parent_path, _, name = spec.target.rpartition(".")
    parent = _module(model, parent_path)
    first = spec.sources[0]
    if spec.kind == "array":
        table = Embedding(spec.rows[0], spec.columns)
        fill_matrix(table, [read_matrix(spec, first, source, config, dtype)])
        parent[name] = table.dequantized(dtype)
        return parent[name]
    module = parent[name]
    if spec.kind == "rms_norm":  # Gemma multiplies by one plus the stored weight
        module.weight = 1 + _read_float(source, f"{first}.weight", mx.float32)
    elif spec.kind == "layer_norm":
        module.weight = _read_float(source, f"{first}.weight", mx.float32)
        module.bias = _read_float(source, f"{first}.bias", mx.float32)
    elif spec.kind == "patches":
        module.weight = _read_float(source, f"{first}.weight", dtype).reshape(module.num_outputs, -1)
        module.bias = _read_float(source, f"{first}.bias", dtype)
    else:
        parts = [read_matrix(spec, part, source, config, dtype) for part in spec.sources]
        if len({quantization for quantization, _ in parts}) == 1:
            fill_matrix(module, parts)
        else:  # packed differently, so they cannot be one matrix: one beside the other
            module = Parallel([Linear(spec.columns, rows, spec.bias) for rows in spec.rows])
            parent[name] = module
            for linear, part in zip(module.parts, parts, strict=True):
                fill_matrix(linear, [part])
    return module.parameters()


def _read_float(source: Source, name: str, dtype: mx.Dtype) -> mx.array:
    array = source.read(name)
    if not mx.issubdtype(array.dtype, mx.floating):
        raise InputError(f"{name} holds {array.dtype}, not floating-point numbers")
    return array.astype(dtype)


def read_matrix(spec: WeightSpec, part: str, source: Source, config: PaliGemmaConfig, dtype: mx.Dtype) -> Matrix:
    """One stored matrix, float or quantized, with its bias and its adapter, not yet evaluated.

    part: its canonical module, one of spec.sources. Float arrays come in `dtype`. Raises InputError for tensors of a
    wrong dtype, or packed in a way that no mode has.
    """
    bias = {"bias": _read_float(source, f"{part}.bias", dtype)} if spec.bias else {}
    if f"{part}.scales" not in source.shapes:
        return None, {"weight": _read_float(source, f"{part}.weight", dtype), **bias}
    quantization = packing(source.shapes, part, spec.columns, config)
    weight = source.read(f"{part}.weight")
    if weight.dtype != mx.uint32:
        raise InputError(f"{part}.weight has scales but holds {weight.dtype}, not packed uint32")
    arrays = {"weight": weight, **bias}
    if quantization.mode == "affine":
        arrays |= {name: _read_float(source, f"{part}.{name}", dtype) for name in ("scales", "biases")}
    else:
        arrays["scales"] = source.read(f"{part}.scales")
        if arrays["scales"].dtype != mx.uint8:
            raise InputError(f"{part}.scales holds {arrays['scales'].dtype}, but {quantization.mode} has uint8")
    table = Embedding(weight.shape[0], spec.columns)
    fill_matrix(table, [(quantization, arrays)])
    adapter = {name: array.astype(dtype) for name, array in source.beside(part, table.dequantized(mx.float32)).items()}
    if "weight" in adapter:
        return None, adapter | bias
    return quantization, arrays | adapter


def fill_matrix(module: Linear | Embedding, parts: list[Matrix]) -> None:
    """Stack parts that are quantized alike, row under row, into the parameters of a module."""
    module.quantization = parts[0][0]
    for name in ("weight", "scales", "biases", "bias"):
        arrays = [arrays[name] for _, arrays in parts if name in arrays]
        if arrays:
            module[name] = arrays[0] if len(arrays) == 1 else mx.concatenate(arrays, axis=0)
    _fill_adapter(module, [arrays for _, arrays in parts])


def _fill_adapter(module: Linear | Embedding, parts: list[dict[str, mx.array]]) -> None:
    """One pair of thin matrices for all parts: their ranks side by side, `up` zero where a row is another part's."""
    ranks = [part["up"].shape[1] if "up" in part else 0 for part in parts]
    if not any(ranks):
        return
    module.down = mx.concatenate([part["down"] for part in parts if "down" in part], axis=0)
    ups, scales, first = [], [], 0
    for part, rank in zip(parts, ranks, strict=True):
        rows, dtype = part["weight"].shape[0], module.down.dtype
        up = part.get("up", mx.zeros((rows, 0), dtype))
        ups.append(mx.pad(up, [(0, 0), (first, sum(ranks) - first - rank)]))
        scales.append(part.get("row_scale", mx.ones((rows,), dtype)))
        first += rank
    module.up = mx.concatenate(ups, axis=0)
    if any("row_scale" in part for part in parts):
        module.row_scale = mx.concatenate(scales, axis=0)


def _module(root: nn.Module, path: str) -> Any:
    node: Any = root
    for name in path.split("."):
        node = node[int(name)] if name.isdigit() else node[name]
    return node
