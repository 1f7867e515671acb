"""Several processes that share each step, as `mlx.launch` starts them."""

from __future__ import annotations

import os

import mlx.core as mx

_STARTED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Variables that launchers set, of MLX's own and of MPI."""


def processes() -> mx.distributed.Group | None:
    """The group of processes that this one belongs to; None if it is alone."""
    if not any(name in os.environ for name in _STARTED):
        return None
    group = mx.distributed.init()
    return group if group.size() > 1 else None
