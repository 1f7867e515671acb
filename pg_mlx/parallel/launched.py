"""What a process knows of its rank from a launcher such as `mlx.launch`, before anything large is imported."""

from __future__ import annotations

import os

_RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Variables that launchers set, of MLX's own and of MPI."""


def launched_rank() -> int | None:
    """The rank that a launcher gave this process; None if none has started it."""
    ranks = [os.environ[name] for name in _RANKS if os.environ.get(name, "").isdecimal()]
    return int(ranks[0]) if ranks else None
