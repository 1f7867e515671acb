"""Which kernels an operation becomes on a kind of chip."""

from __future__ import annotations

from collections.abc import Callable

from ..chips import Chip
from ..trace import Operation
from . import attention, convolution, copies, products, quantized, rows
from .base import Route

_ROUTES: dict[str, Callable[[Operation, Chip], Route]] = {
    "Matmul": products.route,
    "AddMM": products.route,
    "QuantizedMatmul": quantized.route,
    "dequantize": quantized.dequantize,
    "scaled_dot_product_attention": attention.route,
    "Convolution": convolution.route,
    "rms_norm": rows.rms_norm,
    "layer_norm": rows.layer_norm,
    "Softmax": rows.softmax,
    "rope": rows.rope,
    "ArgReduce": rows.argmax,
    "AsType": copies.cast,
    "Reshape": copies.reshape,
    "Flatten": copies.reshape,
    "Unflatten": copies.reshape,
    "SliceUpdate": copies.slice_update,
}

_MISSING = {
    "Gather": "made just in time by MLX: not in the metallib",
    "GatherAxis": "made just in time by MLX: not in the metallib",
    "Scatter": "made just in time by MLX: not in the metallib",
    "Concatenate": "copies into parts of the result, as SliceUpdate's, which is run",
    "Pad": "a fill, and a copy as SliceUpdate's, which is run",
    "Arange": "numbers in a row: one value a thread",
    "Full": "a fill: one value a thread",
}
_ELEMENTWISE = (
    "Add",
    "Subtract",
    "Multiply",
    "Select",
    "LessEqual",
    "Less",
    "Equal",
    "GreaterEqual",
    "LogicalAnd",
    "Maximum",
)


def route(operation: Operation, chip: Chip) -> Route:
    """The kernels, or why they are not run here."""
    if operation.name in _ROUTES:
        return _ROUTES[operation.name](operation, chip)
    if operation.name.startswith("compiled "):
        return Route(operation, missing="made just in time by mx.compile: not in the metallib")
    if operation.name in _ELEMENTWISE:
        return Route(operation, missing="elementwise: one value a thread")
    return Route(operation, missing=_MISSING.get(operation.name, "no rule is written for this operation"))
