"""The table that is the decoder's head, packed for the states that it will be multiplied by.

In PaliGemma it is the embedding too, and decoder blocks are packed for what is looked up in it. So it must be packed
before them, and the states that reach the head are those of the source. What the look-up loses is made good by the
blocks after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from ..linear import Embedding
from ..quantization import gptq, pack_fitted, pad_rows
from .layerwise import Streamed
from .plan import Module


def pack_head(
    streamed: Streamed, module: Module, hidden: mx.array, damping: float, dtype: mx.Dtype, cores: int
) -> dict[str, mx.array]:
    """The packed arrays of the head's table.

    module: of the plan. hidden: float32 [T, D], the source's states that predict the tokens of answers. damping: as for
    `gptq.damp`. dtype: of the scales. cores: as for `gptq.gptq`. Raises InputError for a tensor that cannot be read.
    """
    assert module.target is not None
    damped = gptq.damp(hidden.T @ hidden, damping)
    factor = gptq.inverse_factor(damped)
    step = max(1, gptq.VALUES // module.columns)
    done = []
    for first in range(0, module.padded[0], step):
        last = min(first + step, module.padded[0])
        weight = streamed.table(module.name, first, min(last, module.rows)).dequantized(mx.float32)
        weight = pad_rows(weight, last - first)
        done.append(gptq.gptq(weight, damped, factor, module.target, dtype, cores))
        mx.clear_cache()
    return {part: mx.concatenate([arrays[part] for arrays in done]) for part in done[0]}


def packed_rows(module: Module, arrays: Mapping[str, mx.array], tokens: Sequence[int]) -> Embedding:
    """The rows of some tokens of a packed table, in float32."""
    assert module.target is not None
    rows = mx.array(list(tokens))
    return _table(module.target.unpack({part: array[rows] for part, array in arrays.items()}))


def fitted_rows(module: Module, table: Embedding, dtype: mx.Dtype) -> Embedding:
    """Some rows of a table that is looked up in only, as the result will have them, in float32.

    module: of the plan. table: these rows of the source. dtype: of the scales.
    """
    weight = table.dequantized(mx.float32)
    if module.target is not None and module.stored != module.target:
        weight = module.target.unpack(pack_fitted(weight, module.target, dtype))
    return _table(weight)


def _table(weight: mx.array) -> Embedding:
    """A table with this weight [rows, columns]."""
    table = Embedding(weight.shape[0], weight.shape[1])
    table.weight = weight
    mx.eval(weight)
    return table
