"""GELU in its tanh form, alone (SigLIP) and as a gate (Gemma): z * sigmoid(1.5957691 z + 0.0713548 z^3).

The same as 0.5 z (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))), and written so that no chain of operations is longer than
MLX fuses into one kernel: 11, where each operation of two arrays counts twice.
"""

from __future__ import annotations

import mlx.core as mx

from .backend import fused

_LINEAR = 1.5957691216057308  # 2 sqrt(2 / pi)
_CUBIC = 0.044715 * _LINEAR


def _sigmoid(z: mx.array) -> mx.array:
    return mx.sigmoid(_LINEAR * z + (_CUBIC * z) * mx.square(z))


@fused
def gelu(x: mx.array) -> mx.array:
    """float32 inside, one rounding to x's dtype."""
    z = x.astype(mx.float32)
    return (z * _sigmoid(z)).astype(x.dtype)


@fused
def geglu(gate: mx.array, up: mx.array) -> mx.array:
    """gelu(gate) * up. float32 inside, one rounding to the inputs' dtype."""
    z = gate.astype(mx.float32)
    return ((z * up.astype(mx.float32)) * _sigmoid(z)).astype(gate.dtype)
