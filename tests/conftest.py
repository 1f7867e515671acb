"""pg_mlx before mlx.core, as in a user's program: it puts a fast BLAS library first, whose sums have another order."""

import pg_mlx  # noqa: F401  # isort: skip

import pytest

from pg_mlx.memory import residency


@pytest.fixture(autouse=True, scope="session")
def packed_weights_stay_packed() -> None:
    """Small models are unpacked when they are loaded; the tests want to multiply packed weights. A test that is about
    that sets residency.SMALL_BYTES back, and commands and workers in processes of their own do as users see them."""
    residency.SMALL_BYTES = -1
