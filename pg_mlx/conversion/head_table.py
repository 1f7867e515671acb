"""The table that is the decoder's head, packed for the states that it will be multiplied by.

In PaliGemma it is the embedding too, and decoder blocks are packed for what is looked up in it. So it must be packed
before them, and the states that reach the head are those of the source. What the look-up loses is made good by the
blocks after it.
"""

from __future__ import annotations

import mlx.core as mx

from ..quantization import gptq, pad_rows
from .layerwise import Streamed
from .plan import Module

VALUES = 16 << 20
"""Values of the table that are unpacked at a time."""


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
    step = max(1, VALUES // module.columns)
    done = []
    for first in range(0, module.padded[0], step):
        last = min(first + step, module.padded[0])
        weight = streamed.table(module.name, first, min(last, module.rows)).dequantized(mx.float32)
        weight = pad_rows(weight, last - first)
        done.append(gptq.gptq(weight, damped, factor, module.target, dtype, cores))
        mx.clear_cache()
    return {part: mx.concatenate([arrays[part] for arrays in done]) for part in done[0]}
