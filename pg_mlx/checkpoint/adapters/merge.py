"""Adapters put onto a checkpoint as it is read.

Float weights are merged. Quantized ones stay as they are, since quantizing them again would lose most of a small
update; `AdaptedSource.beside` gives what the layer must add to its output instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from ...config import PaliGemmaConfig
from ...errors import InputError
from ..head import UntiedSource, untied
from ..layouts import EMBEDDING, HEAD, WeightSpec, weight_specs
from ..tensors import Source
from .peft import Adapter, Change

__all__ = ["AdaptedSource", "Adapter", "AdapterPath", "adapted", "open_adapters"]

AdapterPath = str | Path | Sequence[str | Path] | None


def open_adapters(adapter_path: AdapterPath) -> list[Adapter]:
    """The adapters of no folder, one or several, in order. Raises InputError."""
    if adapter_path is None:
        return []
    return [Adapter(path) for path in ([adapter_path] if isinstance(adapter_path, (str, Path)) else adapter_path)]


def adapted(
    source: Source, config: PaliGemmaConfig, adapters: Sequence[Adapter], *, beside: bool = False
) -> tuple[Source, PaliGemmaConfig, tuple[WeightSpec, ...]]:
    """A source with adapters put onto it, and the config and specs of what it is then: an adapter may give the head a
    table of its own, or the vocabulary another size. beside: see AdaptedSource. Raises InputError."""
    tied = config.tie_word_embeddings
    if tied and any(adapter.apart for adapter in adapters):
        source, config = UntiedSource(source), untied(config)
    specs = tuple(weight_specs(config))
    result = AdaptedSource(source, adapters, specs if beside else None, tied=tied)
    config = replace(config, text=replace(config.text, vocab_size=result.rows))
    return result, config, tuple(weight_specs(config))


class AdaptedSource(Source):
    """A Source with adapters put onto it, each on top of the one before. It has the same shapes, unless an adapter
    resizes the vocabulary.

    specs: of the source, if adapters are to stand beside quantized modules. Those are read unchanged, and `beside`
    has the rest; but a module whose whole weight is replaced becomes a float module. tied: whether embedding and head
    are one in the checkpoint that the adapters were made for. Raises InputError for an adapter that does not fit.
    """

    def __init__(
        self,
        source: Source,
        adapters: Sequence[Adapter],
        specs: Iterable[WeightSpec] | None = None,
        *,
        tied: bool = True,
    ):
        self.shapes = dict(source.shapes)
        self._source, self._tied, self._loading = source, tied, specs is not None
        floats = dict(source.shapes)
        if specs is not None:
            floats = {name: shape for spec in specs for name, shape in spec.expected()}
        self._steps: list[tuple[Adapter, Mapping[str, tuple[int, ...]]]] = []
        """Each adapter, and the shapes of the float tensors before it."""
        for adapter in adapters:
            before, floats = floats, dict(floats)
            self._steps.append((adapter, before))
            for module in [*adapter.modules, *({HEAD} & {name.removesuffix(".weight") for name in before})]:
                self._add(adapter, module, before, floats, keep_packed=specs is not None)
        self._floats = floats
        """The shapes of the float tensors after all adapters."""
        tables = {floats[name][0] for name in (f"{EMBEDDING}.weight", f"{HEAD}.weight") if name in floats}
        if len(tables) > 1:
            raise InputError(
                f"{adapters[-1].folder} resizes one of embed_tokens and lm_head only; save it with PEFT's "
                "save_embedding_layers=True"
            )
        self.rows = max(tables)
        """Rows of the vocabulary."""

    def _add(
        self,
        adapter: Adapter,
        module: str,
        before: Mapping[str, tuple[int, ...]],
        floats: dict[str, tuple[int, ...]],
        keep_packed: bool,
    ) -> None:
        """Check that an adapter fits a module, and note the shape that the module has after it."""
        name, trained = f"{module}.weight", self._trained(adapter, module)
        if trained is None or (trained != module and name not in before):
            return
        packed = self._is_packed(module)
        if packed and not keep_packed:
            raise InputError(
                f"{adapter.folder} cannot be merged into {module}, which is quantized: "
                "merge it into the float checkpoint and quantize that"
            )
        change = adapter.change(trained, before)
        if name in before and module in (EMBEDDING, HEAD):
            floats[name] = (adapter.rows(trained, before[name][0]), *before[name][1:])
        if packed and change.weight is not None:
            self.shapes.pop(f"{module}.scales")
            self.shapes.pop(f"{module}.biases", None)
        if not packed or change.weight is not None:
            self.shapes[name] = floats[name]

    def read(self, name: str) -> mx.array:
        """The tensor, merged in float32, not yet evaluated: rounded once to the stored dtype where a checkpoint is
        written, and left float32 where a model is loaded, which rounds it to its own."""
        stored = self._source.read(name)
        module, _, part = name.rpartition(".")
        changes = self._changes(module)
        if not changes or part not in ("weight", "bias") or (part == "weight" and self._is_packed(module)):
            return stored
        if part == "bias":
            return functools.reduce(_bias, changes, stored.astype(mx.float32)).astype(self._dtype(stored))
        is_float = mx.issubdtype(stored.dtype, mx.floating)  # else packed, and one of the changes replaces it
        whole = [index for index, change in enumerate(changes) if change.weight is not None]
        if not (is_float or whole):
            return stored
        weight = stored.astype(mx.float32).reshape(stored.shape[0], -1)
        weight = functools.reduce(_weight, changes[whole[-1] :] if whole else changes, weight)
        return weight.reshape(self.shapes[name]).astype(self._dtype(stored) if is_float else mx.float32)

    def _dtype(self, stored: mx.array) -> mx.Dtype:
        return mx.float32 if self._loading else stored.dtype

    def stored_bytes(self, name: str) -> int:
        """The size of the tensor that is merged into, in bytes."""
        return self._source.stored_bytes(name)

    def beside(self, module: str, weight: mx.array) -> dict[str, mx.array]:
        """The adapter's factors for a quantized module: none, or `up` [outputs, R], `down` [R, columns] and perhaps
        `row_scale` [outputs], as linear.Linear uses them. Where columns change their length, or many rows are
        replaced, the merged `weight` [outputs, columns] instead. weight: the dequantized one, float32 [outputs,
        columns], needed for the lengths of DoRA and for replaced rows. All float32, not yet evaluated."""
        changes = self._changes(module)
        rows, columns = weight.shape
        if any(change.of_columns or _is_dense(change, rows, columns) for change in changes):
            return {"weight": functools.reduce(_weight, changes, weight)}
        up, down, row_scale = mx.zeros((rows, 0)), mx.zeros((0, columns)), mx.ones((rows, 1))
        for change in changes:
            factors = change.factors
            if change.tokens is not None:
                ids, new = mx.array(change.tokens[0]), change.tokens[1]
                present = mx.addmm(row_scale[ids] * weight[ids], up[ids], down)
                factors = (mx.arange(rows)[:, None] == ids).astype(mx.float32), new - present
            if factors is not None:
                up, down = mx.concatenate([up, factors[0]], axis=1), mx.concatenate([down, factors[1]], axis=0)
            if change.magnitude is not None:
                stretch = _stretch(mx.addmm(row_scale * weight, up, down), change.magnitude)
                up, row_scale = stretch * up, stretch * row_scale
        if not up.shape[1]:
            return {}
        scaled = any(change.magnitude is not None for change in changes)
        return {"up": up, "down": down, **({"row_scale": row_scale[:, 0]} if scaled else {})}

    def adapter_bytes(self, module: str, itemsize: int) -> tuple[int, int]:
        """See Source. A float module is merged into in float32, beside a copy; a packed one gets thin factors, or
        becomes a float one, and has to be unpacked for some kinds of adapters."""
        changes = self._changes(module)
        if not changes or f"{module}.weight" not in self._floats:
            return 0, 0
        rows, columns = self._floats[f"{module}.weight"][0], math.prod(self._floats[f"{module}.weight"][1:])
        rank = sum(_rank(change) for change in changes)
        factors, whole = 4 * rank * (rows + columns), 4 * rows * columns
        if not self._is_packed(module):
            return 0, 2 * whole + factors
        if any(change.of_columns or _is_dense(change, rows, columns) for change in changes):
            return rows * columns * itemsize, 3 * whole + factors
        plain = all(change.factors is not None and change.magnitude is None for change in changes)
        return rank * (rows + columns) * itemsize + rows * itemsize, 2 * factors + (0 if plain else 3 * whole)

    def _changes(self, module: str) -> list[Change]:
        found = ((adapter, self._trained(adapter, module), before) for adapter, before in self._steps)
        return [adapter.change(trained, before) for adapter, trained, before in found if trained is not None]

    def _trained(self, adapter: Adapter, module: str) -> str | None:
        """The module of an adapter whose change is one of ours: where the adapter was made for a tied head and keeps it
        tied, the head's is the embedding's."""
        if module == HEAD and self._tied and not adapter.apart:
            module = EMBEDDING
        if module == adapter.borrowed and not self._tied:
            return None
        return module if module in adapter.modules else None

    def _is_packed(self, module: str) -> bool:
        return f"{module}.scales" in self.shapes


def _weight(weight: mx.array, change: Change) -> mx.array:
    """weight [rows, columns], changed."""
    if change.weight is not None:
        weight = change.weight
    if change.factors is not None:
        weight = mx.addmm(weight, *change.factors)
    if change.tokens is not None:
        ids, rows = change.tokens
        weight = mx.pad(weight, [(0, max(0, 1 + max(ids) - weight.shape[0])), (0, 0)])
        weight = mx.array(weight)  # another one, because an assignment changes it in place
        weight[mx.array(ids)] = rows
    return weight if change.magnitude is None else _stretch(weight, change.magnitude) * weight


def _is_dense(change: Change, rows: int, columns: int) -> bool:
    """Whether an update of a matrix [rows, columns] is no small product beside it: it makes the matrix longer, or
    replaces so many rows that a float copy of the whole is not much larger."""
    ids = change.tokens[0] if change.tokens else ()
    return len(ids) > columns // 4 or max(ids, default=0) >= rows


def _rank(change: Change) -> int:
    """How many columns of a thin matrix an update takes."""
    return (change.factors[0].shape[1] if change.factors else 0) + (len(change.tokens[0]) if change.tokens else 0)


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
