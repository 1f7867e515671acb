"""Packing by GPTQ, streamed: the source goes through memory one block at a time and leaves it packed.

Two sets of inputs go through the blocks side by side: the float path's, which the source computes, and the packed
path's, which the packed blocks before this one have made. Within a block one matrix follows the other. So each
matrix is packed for the inputs that it will really have, and for the outputs that the source has (see
quantization/gptq.py).

Inputs at pictures, prompts and answers weigh alike as three wholes, though most of them are at pictures.

Memory: what layerwise.py says, one block in float32 twice (as the source has it and as it becomes), the inputs of both
paths, and for one matrix the squares of its columns, at most MAX_COLUMNS of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..attention_mask import prefix_lm_mask
from ..checkpoint.layouts import EMBEDDING, HEAD, WeightSpec
from ..checkpoint.open import Checkpoint
from ..config import PaliGemmaConfig
from ..linear import Embedding
from ..ops import device
from ..quantization import gptq, pad_columns, pad_rows
from .block_inputs import float_linear, float_weight, get, inputs_of, put, run
from .head_table import fitted_rows, pack_head, packed_rows
from .layerwise import AnsweredPrompt, Streamed
from .plan import Module

_TOKENS, _VALUES = 4096, 64 << 20
"""Input rows that go through a block at once, and values of the decoder's gate and up that they may have."""

DAMPING, PRIOR_PICTURES = 0.2, 16
"""What is added to the diagonal of H, as a share of its mean: .2, or as much as 16 more pictures would add whose inputs
have the mean size and no direction. It keeps few pictures, and such as are unlike the user's, from doing harm. The GPTQ
paper adds .01. Measured on the demo in 3 bits: 16 pictures of noise give a KL of .0304 with 1 and .0357 with .2; after
128 scenes .913 of the boxes are within a pixel with .2 and .899 with .125 (standard error .007)."""

Arrays = dict[str, mx.array]
"""The parts of a packed matrix by name."""


@dataclass
class _Batch:
    """Inputs of a block at the same places of both paths, float32 [B, T, width]."""

    float: mx.array
    packed: mx.array
    weights: mx.array
    """[B * T, 1]: by what an input row is multiplied before it counts; 0 for padding."""
    mask: mx.array | None = None


def calibrated(
    checkpoint: Checkpoint,
    modules: Sequence[Module],
    pictures: Sequence[mx.array],
    texts: Sequence[AnsweredPrompt],
    hidden: mx.array,
    dtype: mx.Dtype,
    progress: Callable[[], None] = lambda: None,
) -> Iterator[tuple[str, Arrays]]:
    """Each of the `calibrated_modules`: its name and its arrays, in the order of the plan.

    modules: those of the plan. pictures: pixels [1, H, W, 3] each. texts: with answers, to be calibrated on. hidden:
    float32 [T, D], what the source's head reads to predict the answers. dtype: of the scales. progress: called after
    each block. Raises InputError for a tensor that cannot be read.
    """
    streamed = Streamed(checkpoint, mx.float32, progress)
    packer = _BlockPacker(checkpoint.specs, modules, dtype, damping(len(pictures)))
    images = max(1, tokens_at_once(checkpoint.config) // checkpoint.config.vision.num_patches)
    grouped = (mx.concatenate(list(pictures[i : i + images])) for i in range(0, len(pictures), images))
    batches = [_Batch(x, x, mx.ones((x.shape[0] * x.shape[1], 1))) for x in streamed.patches(grouped)]
    yield from packer.blocks(streamed, "vision_tower", batches)
    for batch in batches:
        batch.float, batch.packed = streamed.tower_output(batch.float), streamed.tower_output(batch.packed)
    yield from packer.blocks(streamed, "connector", batches)
    features = [
        [getattr(batch, path)[row : row + 1] for batch in batches for row in range(len(batch.float))]
        for path in ("float", "packed")
    ]
    known = sorted({token for text in texts for token in text.read})
    theirs = streamed.embeddings(known)
    embedding = packer.modules[EMBEDDING]
    if EMBEDDING in packer.calibrated:  # it is the head too
        arrays = packer.head(streamed, EMBEDDING, hidden)
        ours = packed_rows(embedding, arrays, known)
        yield EMBEDDING, arrays
        del arrays
    else:
        ours = fitted_rows(embedding, theirs, dtype)
    batches = _texts(streamed, texts, features, known, (theirs, ours))
    del features
    yield from packer.blocks(streamed, "language_model", batches)
    if HEAD in packer.calibrated:
        yield HEAD, packer.head(streamed, HEAD, hidden)


def damping(pictures: int) -> float:
    """What is added to the diagonal of H, as a share of its mean, after so many pictures."""
    return max(DAMPING, PRIOR_PICTURES / pictures)


def tokens_at_once(config: PaliGemmaConfig) -> int:
    """Input rows that go through a block at once, if a single picture or text has not more."""
    return min(_TOKENS, _VALUES // (2 * config.text.intermediate_size))


def calibrated_modules(modules: Sequence[Module]) -> dict[str, Module]:
    """By name those that get their codes from `calibrated`: the matrices that are packed, and the table that is the
    head. Others are copied, stay float, or are looked up in only."""
    head = HEAD if any(module.name == HEAD for module in modules) else EMBEDDING
    return {
        module.name: module
        for module in modules
        if (module.kind == "linear" or module.name == head)
        and module.target is not None
        and (module.stored != module.target or module.padded[1] != module.columns)
    }


def _texts(
    streamed: Streamed,
    texts: Sequence[AnsweredPrompt],
    features: Sequence[Sequence[mx.array]],
    known: Sequence[int],
    tables: Sequence[Embedding],
) -> list[_Batch]:
    """Prompts and answers with their pictures, those of about one length together.

    features and tables: of the float and the packed path. known: the tokens of the tables' rows.
    """
    place = {token: index for index, token in enumerate(known)}
    images = features[0][0].shape[1]
    counts = np.zeros(3)
    for text in texts:
        counts += [images, len(text.prefix), len(text.answer) - 1]
    shares = counts.sum() / np.count_nonzero(counts) / np.maximum(counts, 1)
    batches = []
    for group in _alike(texts, images, tokens_at_once(streamed.config)):
        slots = max(len(text.read) for text in group)
        kinds = np.zeros((len(group), images + slots), np.float32)
        for row, text in enumerate(group):
            prefix, used = images + len(text.prefix), images + len(text.read)
            kinds[row, :images], kinds[row, images:prefix], kinds[row, prefix:used] = shares
        rows = [[place[token] for token in text.read] + [0] * (slots - len(text.read)) for text in group]
        paths = []
        for table, path in zip(tables, features, strict=True):
            streamed.use_embeddings(table)
            seen = mx.concatenate([path[text.picture] for text in group])
            paths.append(mx.concatenate([seen, streamed.embed(rows)], axis=1))
        prefixes = mx.array([images + len(text.prefix) for text in group])
        mask = prefix_lm_mask(images + slots, prefixes, mx.array([images + len(text.read) for text in group]))
        batches.append(_Batch(paths[0], paths[1], mx.array(np.sqrt(kinds).reshape(-1, 1)), mask))
        mx.eval(paths, mask)
    return batches


def _alike(texts: Sequence[AnsweredPrompt], images: int, tokens: int) -> Iterator[list[AnsweredPrompt]]:
    """The texts by length, as many at a time as have so many tokens together."""
    group: list[AnsweredPrompt] = []
    for text in sorted(texts, key=lambda text: len(text.read)):
        if group and (len(group) + 1) * (images + len(text.read)) > tokens:
            yield group
            group = []
        group.append(text)
    if group:
        yield group


class _BlockPacker:
    """Packs the matrices of one block after the other."""

    def __init__(self, specs: Iterable[WeightSpec], modules: Sequence[Module], dtype: mx.Dtype, damping: float):
        self.damping = damping
        self.specs, self.modules, self.dtype = tuple(specs), {module.name: module for module in modules}, dtype
        self.calibrated = calibrated_modules(modules)
        self.cores = 1 if device.is_gpu() else device.cores()

    def head(self, streamed: Streamed, name: str, hidden: mx.array) -> Arrays:
        """The packed arrays of the table that is the head. hidden: as for `calibrated`."""
        return pack_head(streamed, self.calibrated[name], hidden, self.damping, self.dtype, self.cores)

    def blocks(self, streamed: Streamed, part: str, batches: list[_Batch]) -> Iterator[tuple[str, Arrays]]:
        """Pack the blocks of a part, and bring the batches to its end."""
        for path, block in streamed.blocks(part):
            yield from self._block(path, block, batches)
            del block  # before the next one is read
            mx.clear_cache()

    def _block(self, path: str, block: nn.Module, batches: list[_Batch]) -> Iterator[tuple[str, Arrays]]:
        floats, packed = dict[str, Any](), dict[str, Any]()
        specs = [spec for spec in self.specs if spec.kind == "linear" and spec.target.startswith(f"{path}.")]
        for spec in specs:
            name = spec.target.removeprefix(f"{path}.")
            floats[name] = get(block, name)
        for spec in specs:
            name = spec.target.removeprefix(f"{path}.")
            weight = float_weight(floats[name])
            done = weight.astype(self.dtype).astype(mx.float32)
            if any(part in self.calibrated for part in spec.sources):
                prepared = self._prepare(block, name, floats, packed, batches, spec)
                first, pieces = 0, []
                for part, rows in zip(spec.sources, spec.rows, strict=True):
                    module, own = self.modules[part], weight[first : first + rows]
                    pieces.append(done[first : first + rows])
                    first += rows
                    if part in self.calibrated:
                        arrays = self._matrix(module, own, prepared, part == spec.sources[-1])
                        assert module.target is not None
                        pieces[-1] = module.target.unpack(arrays)[:rows, : spec.columns]
                        mx.eval(pieces[-1])
                        yield part, arrays
                del prepared
                done = mx.concatenate(pieces) if len(pieces) > 1 else pieces[0]
                del pieces
            packed[name] = float_linear(done, floats[name])
            mx.eval(packed[name].parameters())
            mx.clear_cache()
        for batch in batches:
            batch.float, batch.packed = (
                run(block, matrices, x, batch.mask) for matrices, x in ((floats, batch.float), (packed, batch.packed))
            )
            mx.eval(batch.float, batch.packed)

    def _prepare(
        self,
        block: nn.Module,
        name: str,
        floats: Mapping[str, Any],
        packed: Mapping[str, Any],
        batches: list[_Batch],
        spec: WeightSpec,
    ) -> list[tuple[slice, gptq.Moments, mx.array]]:
        """For each block of a matrix's columns: which, the moments of its inputs, and the factor of its Hessian."""
        columns = gptq.column_blocks(spec.columns)
        hessians = [mx.zeros((own.stop - own.start,) * 2) for own in columns]
        shifts = list(hessians)
        for batch in batches:
            ours, theirs = (
                inputs_of(block, name, matrices, x, batch.mask) * batch.weights
                for matrices, x in ((packed, batch.packed), (floats, batch.float))
            )
            for index, own in enumerate(columns):
                x, f = ours[:, own], theirs[:, own]
                hessians[index] = hessians[index] + x.T @ x
                shifts[index] = shifts[index] + (f - x).T @ x
                mx.eval(hessians[index], shifts[index])  # now, or the products of all blocks would exist at once
            del ours, theirs, x, f
        put(block, floats)
        missing = self.modules[spec.sources[0]].padded[1] - spec.columns
        prepared = []
        for own, hessian, shift in zip(columns, hessians, shifts, strict=True):
            moments = gptq.Moments(hessian, shift)
            if missing and own.stop == spec.columns:
                own = slice(own.start, own.stop + missing)
                moments = moments.padded(own.stop - own.start)
            moments = moments._replace(hessian=gptq.damp(moments.hessian, self.damping))
            prepared.append((own, moments, gptq.inverse_factor(moments.hessian)))
        return prepared

    def _matrix(
        self, module: Module, weight: mx.array, prepared: list[tuple[slice, gptq.Moments, mx.array]], last: bool
    ) -> Arrays:
        """weight float32 [outputs, columns] -> its packed arrays, padded as the module is to be. last: what is prepared
        is not needed after this, so it goes as it is used."""
        assert module.target is not None
        weight = pad_columns(pad_rows(weight, module.padded[0]), module.padded[1])
        done = []
        for index in range(len(prepared)):
            own, moments, factor = prepared.pop(0) if last else prepared[index]
            moved = gptq.correct(weight[:, own], moments, factor)
            done.append(gptq.gptq(moved, moments.hessian, factor, module.target, self.dtype, self.cores))
        return {part: mx.concatenate([arrays[part] for arrays in done], axis=1) for part in done[0]}
