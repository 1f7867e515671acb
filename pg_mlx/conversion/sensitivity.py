"""How sensitive a model is to each of its matrices: the divergence that one makes alone when it is packed.

The error of a matrix's weights, or of its outputs, does not say it: that of the predictions must be measured. So the
source answers for each group of matrices (query, key and value together, gate and up together) with only that group
packed, by the nearest codes, and its predictions of the answers' tokens are compared with its own.

The source goes through memory block by block (see layerwise.py). The inputs of every variant go along from the block in
which it differs. As many variants as fit into HELD_BYTES go at a time; for more of them the source is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.layouts import WeightSpec
from ..checkpoint.open import Checkpoint
from ..config import PaliGemmaConfig
from ..linear import Embedding
from ..quantization import Quantization, pad_columns
from .allocate import MEASURED_BITS
from .bit_table import GROUP_SIZE
from .block_inputs import float_linear, float_weight, get, put, run
from .layerwise import AnsweredPrompt, Streamed, mask_of
from .metrics import Reading, predict

HELD_BYTES = 2 << 30
"""Inputs of variants that are held at a time."""

_FLOAT = 4
_PACKING = Quantization(MEASURED_BITS, GROUP_SIZE)
_PARTS = ("vision_tower", "connector", "language_model")
Rows = list[mx.array]
"""Inputs of a block, [1, T, width] for each picture or text."""


def sensitivities(
    checkpoint: Checkpoint,
    groups: Sequence[WeightSpec],
    dtype: mx.Dtype,
    pictures: Sequence[mx.array],
    texts: Sequence[AnsweredPrompt],
    vocabulary: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """The mean KL(source || source with one group packed) in nats, for each group.

    groups: matrices of tower, projector and decoder, the embedding, and a head of its own. dtype: of the scales.
    pictures: pixels [1, H, W, 3] each. texts: with answers. vocabulary: the ids that have text. progress: called with
    the work done and all of it. Raises InputError for a tensor that cannot be read.
    """
    order = sorted(range(len(groups)), key=lambda index: _place(groups[index].target))
    most = max(1, HELD_BYTES // held_bytes(checkpoint.config, len(pictures), [len(text.read) for text in texts]))
    waves = [order[first : first + most] for first in range(0, len(order), most)]
    config = checkpoint.config
    blocks = config.vision.num_hidden_layers + 1 + config.text.num_hidden_layers
    total = len(waves) * blocks + sum(max(0, blocks - _block(groups[index].target, config)) for index in order)
    done = 0

    def tick(passes: int) -> None:
        nonlocal done
        done += passes
        progress(min(done, total), total)

    found = [0.0] * len(groups)
    for wave in waves:
        own = {groups[index].target: index for index in wave}
        measured = _Wave(checkpoint, [groups[index] for index in wave], dtype, tick).run(pictures, texts, vocabulary)
        for target, kl in measured:
            found[own[target]] = kl
        mx.clear_cache()
    return found


def held_bytes(config: PaliGemmaConfig, pictures: int, lengths: Sequence[int]) -> int:
    """Bytes of the inputs of one variant. lengths: tokens of each text."""
    images = config.vision.num_patches
    tower = pictures * images * config.vision.hidden_size
    decoder = (len(lengths) * images + sum(lengths)) * config.text.hidden_size
    return _FLOAT * max(tower, decoder)


class _Wave:
    """Some groups, measured while the source is read once."""

    def __init__(
        self, checkpoint: Checkpoint, groups: Sequence[WeightSpec], dtype: mx.Dtype, tick: Callable[[int], None]
    ):
        self.streamed = Streamed(checkpoint, mx.float32)
        self.groups, self.dtype, self._tick = groups, dtype, tick
        self.packed_tables = _PackedTables(self.streamed, checkpoint, dtype)
        self.padded = checkpoint.config.vision.intermediate_size

    def run(
        self, pictures: Sequence[mx.array], texts: Sequence[AnsweredPrompt], vocabulary: int
    ) -> Iterator[tuple[str, float]]:
        """Each group's target and its divergence."""
        streamed = self.streamed
        base: Rows = streamed.patches(pictures)
        variants: dict[str, Rows] = {}
        base = self._through("vision_tower", base, variants)
        base = [streamed.tower_output(x) for x in base]
        variants = {target: [streamed.tower_output(x) for x in rows] for target, rows in variants.items()}
        base = self._through("connector", base, variants)
        features = base
        base = streamed.decoder_inputs(features, texts)
        variants = {target: streamed.decoder_inputs(rows, texts) for target, rows in variants.items()}
        tables = {group.target for group in self.groups if group.target.endswith(("embed_tokens", "lm_head"))}
        tied = streamed.config.tie_word_embeddings
        for target in sorted(tables):
            if target.endswith("embed_tokens"):
                variants[target] = self.packed_tables.decoder_inputs(features, texts)
        del features
        base = self._through("language_model", base, variants, texts)
        source = Reading(streamed, [], mx.concatenate(streamed.decoder_outputs(base, texts)))
        for group in self.groups:
            target = group.target
            rows = variants.pop(target, base)
            head = self.packed_tables if target in tables and (tied or target.endswith("lm_head")) else streamed
            reading = Reading(head, [], mx.concatenate(streamed.decoder_outputs(rows, texts)))
            yield target, float(predict(source, reading, vocabulary).kl.mean())

    def _through(
        self, part: str, base: Rows, variants: dict[str, Rows], texts: Sequence[AnsweredPrompt] | None = None
    ) -> Rows:
        """All rows through the blocks of a part; groups in it become variants. Returns the base's rows."""

        def computed(block: nn.Module, matrices: dict[str, Any], rows: Rows) -> Rows:
            out = []
            for index, x in enumerate(rows):
                out.append(run(block, matrices, x, mask_of(texts[index], x.shape[1]) if texts else None))
                mx.eval(out[-1])
            self._tick(1)
            return out

        for path, block in self.streamed.blocks(part):
            here = [group for group in self.groups if group.target.startswith(f"{path}.")]
            plain = {name: get(block, name) for name in (group.target.removeprefix(f"{path}.") for group in here)}
            for target, rows in variants.items():
                variants[target] = computed(block, plain, rows)
            for group in here:
                name = group.target.removeprefix(f"{path}.")
                packed = float_linear(self._packed(plain[name]), plain[name])
                variants[group.target] = computed(block, {**plain, name: packed}, base)
                put(block, plain)
            base = computed(block, plain, base)
            del block, plain  # before the next one is read
        return base

    def _packed(self, matrix: Any) -> mx.array:
        return packed_weight(float_weight(matrix), self.dtype)


class _PackedTables(Streamed):
    """The same source with its embedding and its head packed. It shares the tables of the other."""

    def __init__(self, other: Streamed, checkpoint: Checkpoint, dtype: mx.Dtype):
        super().__init__(checkpoint, mx.float32)
        self._tables, self._scales = other._tables, dtype

    def _rows_of(self, name: str, index: slice | mx.array) -> Embedding:
        table = super()._rows_of(name, index)
        weight = packed_weight(table.dequantized(mx.float32), self._scales)
        packed = Embedding(weight.shape[0], weight.shape[1])
        packed.weight = weight
        mx.eval(weight)
        return packed


def packed_weight(weight: mx.array, dtype: mx.Dtype) -> mx.array:
    """A float32 [outputs, columns] as it is at MEASURED_BITS, by the nearest codes."""
    columns = weight.shape[1]
    padded = pad_columns(weight.astype(dtype), -(-columns // GROUP_SIZE) * GROUP_SIZE)
    done = _PACKING.unpack(_PACKING.pack(padded))[:, :columns]
    mx.eval(done)
    return done


def _block(target: str, config: PaliGemmaConfig) -> int:
    """The number of the block, in the order of computation, in which a group first differs."""
    part, place = _place(target)
    first = (0, config.vision.num_hidden_layers, config.vision.num_hidden_layers + 1)[part]
    return first + place


def _place(target: str) -> tuple[int, int]:
    """Part and layer. The embedding comes before the decoder's layers, and a head of its own after them."""
    part = next(number for number, name in enumerate(_PARTS) if target.startswith(name))
    layers = target.partition(".layers.")[2]
    last = 1 << 20 if target.endswith("lm_head") else 0
    return part, int(layers.partition(".")[0]) if layers else last
