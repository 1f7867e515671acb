"""GELU in its tanh form, alone (SigLIP) and as a gate (Gemma): z * sigmoid(1.5957691 z + 0.0713548 z^3).

The same as 0.5 z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))), and written so that no chain of operations is longer than
MLX fuses into one kernel: 11, where each operation of two arrays counts twice.
"""

from __future__ import annotations

import mlx.core as mx

from . import host_functions
from .backend import fused, on_gpu
from .host_functions import CUBIC, LINEAR


def gelu(x: mx.array) -> mx.array:
    """float32 inside, one rounding to x's dtype."""
    return _gelu(x) if on_gpu() else host_functions.gelu(_gelu, x)


def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) * up. float32 inside, one rounding to the inputs' dtype."""
    return _geglu(gate, up) if on_gpu() else host_functions.gelu(_geglu, gate, up)


@fused
def _gelu(x: mx.array) -> mx.array:
    z = x.astype(mx.float32)
    return (z * _sigmoid(z)).astype(x.dtype)


@fused
def _geglu(gate: mx.array, up: mx.array) -> mx.array:
    z = gate.astype(mx.float32)
    return ((z * up.astype(mx.float32)) * _sigmoid(z)).astype(gate.dtype)


def _sigmoid(z: mx.array) -> mx.array:
    return mx.sigmoid(LINEAR * z + (CUBIC * z) * mx.square(z))
