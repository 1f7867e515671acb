"""GELU in its tanh form, alone (SigLIP) and as a gate (Gemma): z * sigmoid(1.5957691 z + 0.0713548 z^3).

This equals 0.5 z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))). It is written so that no chain of operations is longer
than MLX fuses into one kernel: 11, where each operation of two arrays counts twice.

MLX's CPU backend computes one exp after the other. NumPy computes several at a time, and the cores share them. One
core, 4.4 M values (benchmarks/cpu_products.py): 98 ms in MLX, 13 by NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from . import device
from .via_numpy import CHUNK_VALUES, LARGE_VALUES, in_threads, numpy, via_numpy

LINEAR = 1.5957691216057308  # 2 sqrt(2 / pi)
CUBIC = 0.044715 * LINEAR


def gelu(x: mx.array, bias: mx.array | None = None) -> mx.array:
    """x [..., C] -> gelu(x) [..., C], or gelu(x + bias) with bias [C]. float32 inside, one rounding to x's dtype."""
    if device.traces_gradients():
        return _with_gradients(_gelu, _gelu_gradient, x if bias is None else x + bias)
    if bias is None:
        return _gelu(x) if device.gpu_ops() else _via_numpy(_gelu, x)
    return _gelu_biased(x, bias) if device.gpu_ops() else _via_numpy(_gelu, x + bias)


def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) * up, all [...]. float32 inside, one rounding to the inputs' dtype."""
    if device.traces_gradients():
        return _with_gradients(_geglu, _geglu_gradients, gate, up)
    return _geglu(gate, up) if device.gpu_ops() else _via_numpy(_geglu, gate, up)


def _with_gradients(function: Callable[..., mx.array], gradients: Callable[..., Any], *inputs: mx.array) -> mx.array:
    """function(*inputs), of which only the inputs are kept for the backward pass: MLX would keep seven results on the
    way, which is half of what a decoder's layer keeps. gradients: (*inputs, cotangent) -> one for each input."""
    traced: Any = mx.custom_function(function)
    traced.vjp(lambda _, cotangent, __: gradients(*inputs, cotangent))
    return traced(*inputs)


@device.fused
def _gelu(x: mx.array) -> mx.array:
    z = x.astype(mx.float32)
    return (z * _sigmoid(z)).astype(x.dtype)


@device.fused
def _gelu_biased(x: mx.array, bias: mx.array) -> mx.array:
    z = x.astype(mx.float32) + bias.astype(mx.float32)
    return (z * _sigmoid(z)).astype(x.dtype)


@device.fused
def _geglu(gate: mx.array, up: mx.array) -> mx.array:
    z = gate.astype(mx.float32)
    return ((z * up.astype(mx.float32)) * _sigmoid(z)).astype(gate.dtype)


@device.fused
def _gelu_gradient(x: mx.array, cotangent: mx.array) -> mx.array:
    z = x.astype(mx.float32)
    return (cotangent.astype(mx.float32) * _slope(z, _sigmoid(z))).astype(x.dtype)


@device.fused
def _geglu_gradients(gate: mx.array, up: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
    z, change = gate.astype(mx.float32), cotangent.astype(mx.float32)
    sigmoid = _sigmoid(z)
    to_gate = (change * up.astype(mx.float32)) * _slope(z, sigmoid)
    return to_gate.astype(gate.dtype), (change * (z * sigmoid)).astype(up.dtype)


def _slope(z: mx.array, sigmoid: mx.array) -> mx.array:
    """The derivative of z * sigmoid(LINEAR z + CUBIC z^3)."""
    return sigmoid * (1 + (z * (LINEAR + (3 * CUBIC) * mx.square(z))) * (1 - sigmoid))


def _sigmoid(z: mx.array) -> mx.array:
    return mx.sigmoid(LINEAR * z + (CUBIC * z) * mx.square(z))


def _via_numpy(plain: Callable[..., mx.array], gate: mx.array, *up: mx.array) -> mx.array:
    """gelu(gate), times `up` if there is one, for many float32 values [...]. plain: the same in MLX's operations, for
    all else and for gradients."""
    if gate.size < LARGE_VALUES or gate.dtype != mx.float32:
        return plain(gate, *up)

    def compute(*inputs: mx.array) -> mx.array:
        width = gate.shape[-1]
        result = mx.zeros(gate.shape)
        rows = [numpy(array).reshape(-1, width) for array in (result, *inputs)]

        def some(first: int) -> None:
            out, z, *factor = (array[first : first + step] for array in rows)
            with np.errstate(over="ignore"):  # exp(large) is inf, and z / inf is what it should be
                np.multiply(z, z, out=out)
                out *= -CUBIC
                out -= LINEAR
                out *= z
                np.exp(out, out=out)
                out += 1
                np.divide(z, out, out=out)
            if factor:
                out *= factor[0]

        step = max(1, CHUNK_VALUES // width)
        in_threads(some, range(0, len(rows[0]), step))
        return result

    return via_numpy(compute, plain, gate, *up)
