"""Which projections of a model learn a low-rank update, putting it there, and taking it off again."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..checkpoint.adapters.merge import Adapter
from ..checkpoint.adapters.peft_writer import peft_name
from ..checkpoint.layouts import CONNECTOR, TEXT, VISION, WeightSpec, weight_specs
from ..config import PaliGemmaConfig
from ..errors import InputError
from ..linear import Linear, Parallel, matrices
from ..paligemma import PaliGemma
from .low_rank import Dropout, LowRank, Pair, row_squares

DECODER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOWER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass(frozen=True)
class LowRankOptions:
    """How an adapter begins. Making one raises InputError for impossible values.

    target_modules: PEFT's names of projections ("q_proj") of the decoder, and of the tower with `vision`; or, as in
    PEFT, one pattern that whole module names match, which then decides alone. None: all of them. vision: the tower
    learns too, and `projector` what leads from it to the decoder. num_layers: only the decoder's last ones.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    dora: bool = False
    target_modules: tuple[str, ...] | str | None = None
    vision: bool = False
    projector: bool = False
    num_layers: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0:
            raise InputError(f"rank {self.rank} and alpha {self.alpha} are not possible: both must be above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"the dropout is {self.dropout}, but must be from 0 to less than 1")
        if self.num_layers is not None and self.num_layers < 1:
            raise InputError(f"num_layers is {self.num_layers}, but must be 1 or more")
        for name in self.target_modules if isinstance(self.target_modules, tuple) else ():
            if name not in (*DECODER_TARGETS, *TOWER_TARGETS):
                known = ", ".join(dict.fromkeys((*DECODER_TARGETS, *TOWER_TARGETS)))
                raise InputError(f"{name} cannot be adapted; target_modules are {known}")


@dataclass
class TrainedAdapter:
    """The low-rank pairs of a model, which is adapted in place until `remove`.

    pairs: by canonical name of the projection. scale: alpha / rank, of all of them.
    """

    model: PaliGemma
    pairs: dict[str, Pair]
    dropout: Dropout
    dora: bool
    _layers: dict[str, LowRank] = field(default_factory=dict)

    def tensors(self) -> dict[str, mx.array]:
        """What is learnt, float32, by canonical name: "....q_proj.lora_A", ".lora_B" and for DoRA ".magnitude"."""
        return {
            f"{name}.{part}": pair[part]
            for name, pair in self.pairs.items()
            for part in ("lora_A", "lora_B", "magnitude")
            if part in pair
        }

    def paths(self) -> dict[str, str]:
        """The names of `tensors`, by path in the model."""
        return {
            f"{path}.pairs.{index}.{part}": f"{pair.name}.{part}"
            for path, layer in self._layers.items()
            for index, pair in enumerate(layer.pairs)
            for part in ("lora_A", "lora_B", "magnitude")
            if part in pair
        }

    def scales(self) -> dict[str, float]:
        """alpha / rank of each projection."""
        return {name: pair.scale for name, pair in self.pairs.items()}

    def load(self, tensors: Mapping[str, mx.array]) -> None:
        """Put other values in place of those of `tensors`. Raises InputError unless names and shapes are equal."""
        shapes = {name: array.shape for name, array in self.tensors().items()}
        if shapes != {name: array.shape for name, array in tensors.items()}:
            raise InputError("the adapter's tensors are not those of this model and these options")
        for name, pair in self.pairs.items():
            for part in ("lora_A", "lora_B", "magnitude"):
                if part in pair:
                    pair[part] = tensors[f"{name}.{part}"]

    def remove(self) -> None:
        """The model as it was before, without the adapter."""
        for path, layer in self._layers.items():
            _put(self.model, path, layer.base)
        self._layers.clear()


def adapt(model: PaliGemma, options: LowRankOptions, start: str | Path | None = None) -> TrainedAdapter:
    """Put an adapter onto a model, which is frozen but for that: A random, B zero, so that nothing changes at first.

    start: the folder or hub repository of an adapter to begin with; rank, alpha and projections are then its own.
    Raises InputError for options that adapt nothing, and for a start that is not low-rank alone.
    """
    model.freeze()
    begin = None if start is None else _Start(start, model)
    dropout = Dropout(options.dropout, options.seed)
    dora = options.dora if begin is None else begin.dora
    adapter = TrainedAdapter(model, {}, dropout, dora)
    wanted = begin.wants if begin is not None else _Wanted(model.config, options).wants
    for spec in weight_specs(model.config):
        chosen = [wanted(source) for source in spec.sources]
        if not any(chosen):
            continue
        if spec.kind != "linear":
            raise InputError(f"{peft_name(spec.sources[0])} cannot be adapted: only linear layers can")
        base = _get(model, spec.target)
        squares = row_squares(base) if dora else None
        pairs, first = [], 0
        for source, rows, learns in zip(spec.sources, spec.rows, chosen, strict=True):
            if learns:
                pair, magnitude = (
                    begin.pair(source, first) if begin is not None else _fresh(spec, source, rows, first, options)
                )
                if squares is not None:
                    pair.learn_lengths(squares[first : first + rows], magnitude)
                pairs.append(pair)
            first += rows
        of_images = not spec.target.startswith("language_model.")
        layer = LowRank(base, pairs, dropout, zlib.crc32(spec.target.encode()), of_images)
        _put(model, spec.target, layer)
        adapter._layers[spec.target] = layer
        adapter.pairs |= {pair.name: pair for pair in pairs}
    if not adapter.pairs:
        raise InputError("nothing would be learnt: no module of this model is among the target_modules")
    mx.eval(adapter.tensors())
    return adapter


def count_learnt(config: PaliGemmaConfig, options: LowRankOptions) -> int:
    """How many numbers `adapt` would let a model learn, from its dimensions alone."""
    wants = _Wanted(config, options).wants
    return sum(
        options.rank * (rows + spec.columns) + rows * options.dora
        for spec in weight_specs(config)
        if spec.kind == "linear"
        for source, rows in zip(spec.sources, spec.rows, strict=True)
        if wants(source)
    )


def train_all(model: PaliGemma, vision: bool = True, projector: bool = True) -> None:
    """Full fine-tuning: all weights learn, those of tower and projector unless they are not to.

    Raises InputError for a model with packed weights.
    """
    if any(matrix.quantization for matrix in matrices(model)):
        raise InputError("packed weights cannot be fine-tuned as a whole: use LoRA, or a float checkpoint")
    model.freeze()
    model.language_model.unfreeze()
    if vision:
        model.vision_tower.unfreeze()
    if projector:
        model.connector.unfreeze()


class _Wanted:
    """Which canonical modules the options mean."""

    def __init__(self, config: PaliGemmaConfig, options: LowRankOptions):
        self._options = options
        layers = config.text.num_hidden_layers
        self._first_layer = layers - min(options.num_layers or layers, layers)
        try:
            self._pattern = re.compile(options.target_modules) if isinstance(options.target_modules, str) else None
        except re.error as error:
            raise InputError(f"target_modules {options.target_modules!r} is not a pattern: {error}") from None

    def wants(self, module: str) -> bool:
        options = self._options
        if self._pattern is not None:
            return self._pattern.fullmatch(peft_name(module)) is not None
        if module == CONNECTOR:
            return options.projector
        names = options.target_modules if isinstance(options.target_modules, tuple) else None
        name = module.rpartition(".")[2]
        if module.startswith(f"{VISION}.encoder."):
            return options.vision and name in TOWER_TARGETS and (names is None or name in names)
        if not module.startswith(f"{TEXT}.layers.") or int(module.split(".")[3]) < self._first_layer:
            return False
        return name in DECODER_TARGETS and (names is None or name in names)


def _fresh(spec: WeightSpec, name: str, rows: int, first: int, options: LowRankOptions) -> tuple[Pair, None]:
    """A as PEFT draws it, uniform in +-1 / sqrt(columns), from the seed and the name; B zero."""
    random = np.random.default_rng([options.seed, zlib.crc32(name.encode())])
    bound = spec.columns**-0.5
    a = random.uniform(-bound, bound, (options.rank, spec.columns)).astype(np.float32)
    return Pair(name, first, options.alpha / options.rank, mx.array(a), mx.zeros((rows, options.rank))), None


class _Start:
    """An adapter's folder as a beginning."""

    def __init__(self, folder: str | Path, model: PaliGemma):
        self._adapter = Adapter(folder)
        self._shapes = {name: shape for spec in weight_specs(model.config) for name, shape in spec.expected()}
        self.dora = bool(self._adapter.config.get("use_dora"))
        if unknown := self._adapter.modules - {name.removesuffix(".weight") for name in self._shapes}:
            raise InputError(f"{folder} adapts {min(unknown)}, which this model does not have")

    def wants(self, module: str) -> bool:
        return module in self._adapter.modules

    def pair(self, name: str, first: int) -> tuple[Pair, mx.array | None]:
        change = self._adapter.change(name, self._shapes)
        others = (change.weight, change.bias, change.extra_bias, change.tokens)
        if change.factors is None or change.of_columns or any(other is not None for other in others):
            raise InputError(f"{self._adapter.folder} changes {name} by more than a low-rank product: it is no start")
        up, down = change.factors
        magnitude = None if change.magnitude is None else change.magnitude.flatten()
        return Pair(name, first, change.scale, down, up / change.scale), magnitude


def _parts(path: str) -> Iterator[str | int]:
    return (int(name) if name.isdigit() else name for name in path.split("."))


def _get(root: nn.Module, path: str) -> Linear | Parallel:
    node: Any = root
    for name in _parts(path):
        node = node[name]
    return node


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, name = _parts(path)
    node: Any = root
    for parent in parents:
        node = node[parent]
    node[name] = module
