"""Gemma 2's attention with a GPU's operations: few rows of queries that share keys are products of vectors."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from pg_mlx.ops import device
from pg_mlx.ops.attention import VECTORS, capped


def matmul_rows(queries: int) -> set[int]:
    """Rows of the products that attention of two query heads for each head of keys makes."""
    query, key = mx.zeros((1, 4, queries, 8)), mx.zeros((1, 2, 9, 8))
    operations: list[dict[str, Any]] = []
    with device.use("gpu"):
        mx.export_function(operations.append, lambda q, k: [capped(q, k, k, None, 0.3, 4.0)], query, key)
    return {op["outputs"][0][1][-2] for op in operations if op.get("name") == "Matmul"}


def test_few_rows_are_vectors() -> None:
    assert matmul_rows(1) == matmul_rows(VECTORS // 2) == {1}
    assert matmul_rows(VECTORS) == {2 * VECTORS}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("queries", [1, 2, 4, 5])
def test_both_forms_are_equal(queries: int, masked: bool) -> None:
    key = mx.random.key(queries)
    query = mx.random.normal((2, 4, queries, 8), key=key) * 5
    buffer = mx.random.normal((2, 2, 2, 12, 8), key=key)
    keys, values = buffer[0, :, :, :9], buffer[1, :, :, :9]
    mask = mx.arange(9)[None, None, None] <= mx.arange(3, 3 + queries)[None, None, :, None] if masked else None
    results = {}
    for ops in ("cpu", "gpu"):
        with device.use(ops):
            results[ops] = capped(query, keys, values, mask, 0.3, 4.0)
    assert mx.allclose(results["cpu"], results["gpu"], rtol=0, atol=1e-6).item()
