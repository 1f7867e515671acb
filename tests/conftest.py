"""pg_mlx before mlx.core, as in a user's program: it puts a fast BLAS library first, whose sums have another order."""

import pg_mlx  # noqa: F401  # isort: skip

from collections.abc import Iterator

import mlx.core as mx
import pytest

from pg_mlx import memory


@pytest.fixture(autouse=True, scope="session")
def packed_weights_stay_packed() -> None:
    """Small models are unpacked when they are loaded; the tests want to multiply packed weights. A test that is about
    that sets memory.SMALL_BYTES back, and commands and workers in processes of their own do as users see them."""
    memory.SMALL_BYTES = -1


@pytest.fixture(autouse=True)
def compiling_stays_on() -> Iterator[None]:
    """Commands turn it off for their process, which here is the one of the tests that come after."""
    yield
    mx.enable_compile()
