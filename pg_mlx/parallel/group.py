"""The processes that `mlx.launch` has started together."""

from __future__ import annotations

import mlx.core as mx

from ..errors import InputError
from .launched import launched_rank


def processes() -> mx.distributed.Group | None:
    """The group of processes that this one belongs to; None if it is alone."""
    if launched_rank() is None:
        return None
    group = mx.distributed.init()
    return group if group.size() > 1 else None


def required() -> mx.distributed.Group:
    """The group of processes that this one belongs to. Raises InputError if it is alone, or cannot reach the others."""
    try:
        group = mx.distributed.init(strict=True) if launched_rank() is not None else None
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--parallel: no other process can be reached (mlx.launch -n 2 starts two): {error}") from None
    if group is None or group.size() == 1:
        raise InputError("--parallel needs several processes, and this one is alone: start it with mlx.launch -n 2 --")
    return group
