"""MLX's shipped kernels, in the shapes, strides and offsets of the published models, against NumPy.

Here each kernel runs with each set of constants and each way in which its inputs lie in memory, at the smallest width.
All widths: `python -m tools.metal`; all numbers of rows: `python -m tools.metal --all`. `-rP` shows the figures.
"""

from __future__ import annotations

import pytest
from helpers.metal import routes, shipped

from pg_mlx.ops import attention
from tools.metal import report, table
from tools.metal.chips import CHIPS
from tools.metal.passes import Pass, operations
from tools.metal.routes import route

OPERATIONS = [
    *("AddMM", "ArgReduce", "AsType", "Convolution", "Matmul", "QuantizedMatmul", "Reshape", "SliceUpdate", "Softmax"),
    *("dequantize", "layer_norm", "rms_norm", "rope", "scaled_dot_product_attention"),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_kernel_is_right(operation: str) -> None:
    kernels = shipped()
    chosen = [entry for entry in table.few_widths(routes()) if entry.route.operation.name == operation]
    outcomes = list(report.run([entry for entry in chosen if not entry.route.missing], kernels))
    print("\n".join(map(report.line, outcomes)))
    assert outcomes and [report.line(outcome) for outcome in outcomes if not outcome.good] == []


def test_every_operation_is_run() -> None:
    assert {entry.route.operation.name for entry in routes() if not entry.route.missing} == set(OPERATIONS)


def test_every_kernel_of_the_table_is_in_the_metallib() -> None:
    started = {d.kernel for entry in routes() for d in entry.route.dispatches}
    assert started - set(shipped()) == set()


def test_what_is_not_run_has_a_reason_that_is_known() -> None:
    reasons = {entry.route.missing for entry in routes() if not entry.route.dispatches}
    assert all(reasons)
    assert not [reason for reason in reasons if "no rule" in reason]


def test_a_decode_step_takes_the_kernels_that_are_expected() -> None:
    """What docs/metal.md says of the paths: vectors for one row, on every chip."""
    wanted = Pass("paligemma-3b", 448, "balanced", "step", 1)
    for chip in CHIPS:
        found = [route(operation, chip) for operation in operations(wanted, chip)]
        kernels = {d.kernel.split("_bfloat16")[0] for r in found for d in r.dispatches}
        assert {"affine_qmv_fast", "rmsfloat32", "rope"} <= kernels
        two_passes = chip.size in "sd"
        assert ("sdpa_vector_2pass_1" in kernels) == two_passes
        assert ("sdpa_vector" in kernels) == (not two_passes)


@pytest.mark.parametrize("batch, even", [(1, True), (8, True), (8, False)])
def test_gemma_2_decodes_by_vectors(batch: int, even: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities times values is a vector's kernel, and not the one with tiles of 64 rows."""
    for most, by_vectors in ((attention.VECTORS, True), (0, False)):
        monkeypatch.setattr(attention, "VECTORS", most)
        found = [
            route(op, CHIPS[0]) for op in operations(Pass("paligemma2-3b", 448, None, "step", batch, even), CHIPS[0])
        ]
        products = {d.kernel.split("_bfloat16")[0] for r in found if r.operation.name == "Matmul" for d in r.dispatches}
        assert ("gemv_t" in products) == by_vectors
        assert ("steel_gemm_fused_nn" in products) == (not by_vectors)
