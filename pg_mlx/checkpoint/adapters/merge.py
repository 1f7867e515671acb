"""Adapters put onto a checkpoint as it is read.

Float weights are merged. Quantized ones stay as they are, since quantizing them again would lose most of a small
update; `AdaptedSource.beside` gives what the layer must add to its output instead.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import mlx.core as mx

from ...errors import InputError
from ..layouts import WeightSpec
from ..tensors import Source
from .peft import Adapter, Change

__all__ = ["AdaptedSource", "Adapter", "AdapterPath", "open_adapters"]

AdapterPath = str | Path | Sequence[str | Path] | None


def open_adapters(adapter_path: AdapterPath) -> list[Adapter]:
    """The adapters of no folder, one or several, in order. Raises InputError."""
    if adapter_path is None:
        return []
    return [Adapter(path) for path in ([adapter_path] if isinstance(adapter_path, (str, Path)) else adapter_path)]


class AdaptedSource(Source):
    """A Source with adapters put onto it, each on top of the one before. It has the same shapes.

    specs: of the checkpoint, needed where the adapters change quantized modules. Those are read unchanged, and `beside`
    has the rest; but a module whose whole weight is replaced becomes a float module. Raises InputError for an adapter
    that does not fit the model.
    """

    def __init__(self, source: Source, adapters: Sequence[Adapter], specs: Iterable[WeightSpec] | None = None):
        self.shapes = dict(source.shapes)
        self._source, self._adapters = source, adapters
        self._floats: Mapping[str, tuple[int, ...]] = source.shapes
        if specs is not None:
            self._floats = {name: shape for spec in specs for name, shape in spec.expected()}
        for adapter in adapters:
            for module in adapter.modules:
                packed = self._is_packed(module)
                if packed and specs is None:
                    raise InputError(
                        f"{adapter.folder} cannot be merged into {module}, which is quantized: "
                        "merge it into the float checkpoint and quantize that"
                    )
                if adapter.change(module, self._floats).weight is not None and packed:
                    self.shapes[f"{module}.weight"] = self._floats[f"{module}.weight"]
                    self.shapes.pop(f"{module}.scales")
                    self.shapes.pop(f"{module}.biases", None)

    def read(self, name: str) -> mx.array:
        """The tensor, merged in float32 and rounded once to the stored dtype, not yet evaluated."""
        stored = self._source.read(name)
        module, _, part = name.rpartition(".")
        changes = self._changes(module)
        if not changes or part not in ("weight", "bias") or (part == "weight" and self._is_packed(module)):
            return stored
        if part == "bias":
            return functools.reduce(_bias, changes, stored.astype(mx.float32)).astype(stored.dtype)
        is_float = mx.issubdtype(stored.dtype, mx.floating)  # else packed, and one of the changes replaces it
        whole = [index for index, change in enumerate(changes) if change.weight is not None]
        if not (is_float or whole):
            return stored
        weight = stored.astype(mx.float32).reshape(stored.shape[0], -1)
        weight = functools.reduce(_weight, changes[whole[-1] :] if whole else changes, weight)
        return weight.reshape(self.shapes[name]).astype(stored.dtype if is_float else mx.float32)

    def stored_bytes(self, name: str) -> int:
        """The size of the tensor that is merged into, in bytes."""
        return self._source.stored_bytes(name)

    def beside(self, module: str, weight: mx.array) -> dict[str, mx.array]:
        """The adapter's factors for a quantized module: none, or `up` [outputs, R], `down` [R, columns] and perhaps
        `row_scale` [outputs], as linear.Linear uses them. Where columns change their length, the merged `weight`
        [outputs, columns] instead. weight: the dequantized one, float32 [outputs, columns], needed for the lengths of
        DoRA. All float32, not yet evaluated."""
        changes = self._changes(module)
        if any(change.magnitude is not None and change.magnitude.shape[1] > 1 for change in changes):
            return {"weight": functools.reduce(_weight, changes, weight)}
        updates = [(*change.factors, change.magnitude) for change in changes if change.factors is not None]
        rows, columns = weight.shape
        up, down, row_scale = mx.zeros((rows, 0)), mx.zeros((0, columns)), mx.ones((rows, 1))
        for more_up, more_down, magnitude in updates:
            up, down = mx.concatenate([up, more_up], axis=1), mx.concatenate([down, more_down], axis=0)
            if magnitude is not None:
                stretch = _stretch(mx.addmm(row_scale * weight, up, down), magnitude)
                up, row_scale = stretch * up, stretch * row_scale
        if not updates:
            return {}
        scaled = any(magnitude is not None for *_, magnitude in updates)
        return {"up": up, "down": down, **({"row_scale": row_scale[:, 0]} if scaled else {})}

    def _changes(self, module: str) -> list[Change]:
        return [adapter.change(module, self._floats) for adapter in self._adapters if module in adapter.modules]

    def _is_packed(self, module: str) -> bool:
        return f"{module}.scales" in self.shapes


def _weight(weight: mx.array, change: Change) -> mx.array:
    """weight [rows, columns], changed."""
    if change.weight is not None:
        weight = change.weight
    if change.factors is not None:
        weight = mx.addmm(weight, *change.factors)
    return weight if change.magnitude is None else _stretch(weight, change.magnitude) * weight


def _bias(bias: mx.array, change: Change) -> mx.array:
    """bias [rows], changed."""
    if change.bias is not None:
        bias = change.bias
    return bias if change.extra_bias is None else bias + change.extra_bias


def _stretch(weight: mx.array, magnitude: mx.array) -> mx.array:
    """What makes the rows of weight [rows, columns] as long as magnitude [rows, 1] says, or its columns [1, columns].
    Zeros (padding) stay zeros."""
    axis = 1 if magnitude.shape[1] == 1 else 0
    length = mx.sqrt(mx.square(weight).sum(axis=axis, keepdims=True))
    return mx.where(length > 0, magnitude / length, 0)
