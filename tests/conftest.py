"""pg_mlx before mlx.core, as in a user's program: it puts a fast BLAS library first, whose sums have another order."""

import pg_mlx  # noqa: F401
