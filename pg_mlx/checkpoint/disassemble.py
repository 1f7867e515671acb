"""The model's parameters under canonical names: what `assemble` has put together, taken apart again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise

import mlx.core as mx
from mlx.utils import tree_flatten

from ..config import PaliGemmaConfig
from ..paligemma import PaliGemma
from .layouts import weight_specs


def canonical_arrays(config: PaliGemmaConfig, arrays: Mapping[str, mx.array]) -> Iterator[tuple[str, mx.array]]:
    """(canonical name, array) for arrays by path in a float model, such as gradients; paths may be missing.

    Fused projections are cut into their parts. Norms are what the model multiplies by, one more than what is stored.
    """
    for spec in weight_specs(config):
        for part in ("weight", "bias"):
            array = arrays.get(spec.target if spec.kind == "array" else f"{spec.target}.{part}")
            if array is None or (spec.kind == "array" and part == "bias"):
                continue
            ends = pairwise(accumulate(spec.rows, initial=0))
            shapes = dict(spec.expected())
            for source, (first, last) in zip(spec.sources, ends, strict=True):
                name = f"{source}.{part}"
                yield name, array[first:last].reshape(shapes[name])


def stored_weights(model: PaliGemma) -> Iterator[tuple[str, mx.array]]:
    """(canonical name, array) for all weights of a float model, as checkpoints store them."""
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    norms = {
        f"{source}.weight" for spec in weight_specs(model.config) if spec.kind == "rms_norm" for source in spec.sources
    }
    for name, array in canonical_arrays(model.config, parameters):
        yield name, array - 1 if name in norms else array
