"""How each operation's routes are checked."""

from __future__ import annotations

import zlib

import numpy as np

from ..library import Library
from ..routes.base import Route
from . import attention, convolution, products, quantized, rows
from .base import Check, Result, Run

_CHECKS: dict[str, Check] = {
    "Matmul": products.check,
    "AddMM": products.check,
    "QuantizedMatmul": quantized.product,
    "dequantize": quantized.dequantize,
    "scaled_dot_product_attention": attention.check,
    "Convolution": convolution.check,
    "rms_norm": rows.rms_norm,
    "layer_norm": rows.layer_norm,
    "Softmax": rows.softmax,
    "rope": rows.rope,
    "ArgReduce": rows.argmax,
    "AsType": rows.copy,
    "Reshape": rows.copy,
    "Flatten": rows.copy,
    "Unflatten": rows.copy,
    "SliceUpdate": rows.slice_update,
}


def check(route: Route, library: Library) -> Result:
    """Run a route's kernels and compare. The random numbers depend on its kernels and shapes alone. Raises
    Unsupported for a kernel that does what the translation does not know."""
    seed = zlib.crc32(repr((route.kernels, route.operation.inputs)).encode())
    return _CHECKS[route.operation.name](Run(route, np.random.default_rng(seed)), library)
