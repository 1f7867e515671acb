"""What reaches a matrix inside a block, and blocks with other matrices in their places."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..linear import Linear, Parallel


class _Reached(Exception):
    """A probe has all inputs, so the rest of the block need not run."""


class _Probe(nn.Module):
    """In the place of a matrix: notes what it is multiplied by. Raises _Reached when it has seen that many tokens."""

    def __init__(self, outputs: int, tokens: int):
        super().__init__()
        self._outputs, self._tokens, self._inputs = outputs, tokens, list[mx.array]()

    def __call__(self, x: mx.array) -> mx.array:
        """x [B, T, columns] -> zeros [B, T, outputs]. A block may call it for some tokens at a time."""
        self._inputs.append(x)
        self._tokens -= x.shape[1]
        if self._tokens <= 0:
            raise _Reached
        return mx.zeros((*x.shape[:-1], self._outputs))

    def unbiased(self, x: mx.array) -> tuple[mx.array, None]:
        """As Linear.unbiased."""
        return self(x), None

    @property
    def inputs(self) -> mx.array:
        """All of them, [B * T, columns]."""
        x = mx.concatenate(self._inputs, axis=1)
        return x.reshape(-1, x.shape[-1])


def inputs_of(block: nn.Module, name: str, matrices: Mapping[str, Any], x: mx.array, mask: mx.array | None) -> mx.array:
    """What reaches the matrix `name` of a block, [B * T, columns], when it reads x [B, T, width]. Nothing that comes
    after this matrix is computed."""
    before = get(block, name)
    probe = _Probe(sum(part.num_outputs for part in _parts(before)), x.shape[1])
    put(block, {**matrices, name: probe})
    with contextlib.suppress(_Reached):
        _call(block, x, mask)
    put(block, {name: before})
    return probe.inputs


def run(block: nn.Module, matrices: Mapping[str, Any], x: mx.array, mask: mx.array | None) -> mx.array:
    """What a block with these matrices makes of x [B, T, width]."""
    put(block, matrices)
    return _call(block, x, mask)


def _call(block: Any, x: mx.array, mask: mx.array | None) -> mx.array:
    return block(x) if mask is None else block(x, mask)


def put(block: nn.Module, matrices: Mapping[str, Any]) -> None:
    """Put matrices into their places in a block, by path."""
    for name, matrix in matrices.items():
        parent, _, last = name.rpartition(".")
        get(block, parent)[last] = matrix


def get(block: nn.Module, name: str) -> Any:
    """The module at a path in a block."""
    node: Any = block
    for part in name.split(".") if name else ():
        node = node[part]
    return node


def _parts(matrix: Any) -> list[Linear]:
    return matrix.parts if isinstance(matrix, Parallel) else [matrix]


def float_weight(matrix: Any) -> mx.array:
    """float32 [outputs, columns], all parts of it."""
    parts = [part.dequantized(mx.float32) for part in _parts(matrix)]
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def float_linear(weight: mx.array, like: Any) -> Linear:
    """A float matrix with the biases of another one."""
    linear = Linear(weight.shape[1], weight.shape[0])
    linear.weight = weight
    biases = [part.bias for part in _parts(like) if "bias" in part]
    if biases:
        linear.bias = mx.concatenate(biases)
    return linear
