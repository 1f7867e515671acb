"""MLX's shipped kernels, in the shapes, strides and offsets of every published model, against NumPy.

`-rP` shows the figures. Every route, with all numbers of rows: `python -m tools.metal --all`.
"""

from __future__ import annotations

import pytest
from helpers.metal import routes_of, run_routes, shipped

from pg_mlx.config import SIZES
from tools.metal.chips import CHIPS
from tools.metal.passes import Pass, operations
from tools.metal.routes import route


@pytest.mark.parametrize("model", SIZES)
def test_every_kind_of_route_is_right(model: str) -> None:
    outcomes = run_routes(model)
    assert [str(outcome.entry.route.operation) for outcome in outcomes if not outcome.good] == []
    assert len(outcomes) > 50


def test_every_kernel_of_the_table_is_in_the_metallib() -> None:
    kernels = shipped()
    started = {d.kernel for model in SIZES for entry in routes_of(model) for d in entry.route.dispatches}
    assert started - set(kernels) == set()


def test_what_is_not_run_has_a_reason_that_is_known() -> None:
    reasons = {entry.route.missing for model in SIZES for entry in routes_of(model) if not entry.route.dispatches}
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


def test_gemma_2_decodes_by_vectors_if_each_head_is_a_product() -> None:
    for wanted, by_vectors in (
        (Pass("paligemma2-3b", 448, None, "step", 1, by_vectors=True), True),
        (Pass("paligemma2-3b", 448, None, "extend", 8), False),
    ):
        found = [route(operation, CHIPS[0]) for operation in operations(wanted, CHIPS[0])]
        kernels = {d.kernel.split("_bfloat16")[0] for r in found for d in r.dispatches if len(r.operation.inputs) == 2}
        assert ("gemv_t" in kernels) == by_vectors
        assert ("steel_gemm_fused_nn" in kernels) == (not by_vectors)
