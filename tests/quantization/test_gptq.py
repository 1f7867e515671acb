"""GPTQ on single matrices: what it keeps, and what it never does."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from pg_mlx.errors import PgMlxError
from pg_mlx.quantization import Quantization, gptq, pack_fitted
from pg_mlx.quantization.gptq import Moments, column_blocks, correct, damp, inverse_factor
from pg_mlx.quantization.modes import AFFINE_BITS

DAMPING = 0.2


def inputs(rows: int = 500, columns: int = 128, seed: int = 1) -> mx.array:
    """Rows whose columns depend on each other, of unequal size."""
    keys = mx.random.split(mx.random.key(seed), 3)
    mixed = mx.random.normal((rows, columns), key=keys[0]) @ mx.random.normal((columns, columns), key=keys[1])
    return mixed * mx.exp(mx.random.normal((columns,), key=keys[2]))


def weights(outputs: int = 48, columns: int = 128) -> mx.array:
    return mx.random.normal((outputs, columns), key=mx.random.key(7)) * 0.1


def packed_for(hessian: mx.array, weight: mx.array, quantization: Quantization, cores: int = 1) -> dict[str, mx.array]:
    damped = damp(hessian, DAMPING)
    return gptq.gptq(weight, damped, inverse_factor(damped), quantization, mx.bfloat16, cores)


def output_error(weight: mx.array, other: mx.array, x: mx.array) -> float:
    return mx.square(x @ (other - weight).T).sum().item()


def test_the_factor_is_of_the_damped_inverse() -> None:
    x = inputs(columns=64)
    hessian = np.array(x.T @ x, np.float64)
    factor = np.array(inverse_factor(damp(x.T @ x, DAMPING)), np.float64)
    damped = hessian + DAMPING * np.diag(hessian).mean() * np.eye(64)
    assert (np.tril(factor, -1) == 0).all()
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(64), atol=1e-3)


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_outputs_are_kept_better_than_by_the_nearest_codes(bits: int) -> None:
    x, weight, quantization = inputs(), weights(), Quantization(bits, 64)
    arrays = packed_for(x.T @ x, weight, quantization)
    packed = quantization.pack(weight.astype(mx.bfloat16))
    assert all((arrays[part].shape, arrays[part].dtype) == (a.shape, a.dtype) for part, a in packed.items())
    error = output_error(weight, quantization.unpack(arrays), x)
    for other in (packed, pack_fitted(weight, quantization, mx.bfloat16)):
        assert error < 0.7 * output_error(weight, quantization.unpack(other), x)


def test_independent_inputs_leave_nothing_to_make_good() -> None:
    """The Hessian is then diagonal. Scale and bias are those of the fit, but for one round more."""
    weight, quantization = weights(), Quantization(3, 32)
    arrays = packed_for(mx.eye(128), weight, quantization)
    fitted = pack_fitted(weight, quantization, mx.bfloat16)
    errors = [mx.square(quantization.unpack(each) - weight).mean().item() for each in (arrays, fitted)]
    assert 0.98 * errors[1] < errors[0] <= errors[1]


def test_outputs_are_independent_and_so_is_the_number_of_cores() -> None:
    x, weight, quantization = inputs(), weights(256), Quantization(4, 64)
    whole, shared, part = (
        packed_for(x.T @ x, rows, quantization, cores)
        for rows, cores in ((weight, 1), (weight, 3), (weight[64:128], 1))
    )
    assert all(mx.array_equal(whole[name], shared[name]) for name in whole)
    assert all(mx.array_equal(whole[name][64:128], part[name]) for name in whole)


def test_outputs_in_pieces_are_outputs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, quantization = inputs(), weights(100), Quantization(3, 64)
    whole = packed_for(x.T @ x, weight, quantization)
    monkeypatch.setattr(gptq, "VALUES", 48 * 128)
    pieces = packed_for(x.T @ x, weight, quantization)
    assert all(mx.array_equal(whole[name], pieces[name]) for name in whole)


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_every_sweep_lowers_the_damped_error_or_keeps_it(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, quantization = inputs(), weights(), Quantization(bits, 32)
    damped = np.array(damp(x.T @ x, DAMPING), np.float64)
    errors = []
    for sweeps in (0, 1, 2, 4):
        monkeypatch.setattr(gptq, "SWEEPS", sweeps)
        moved = np.array(quantization.unpack(packed_for(x.T @ x, weight, quantization)) - weight, np.float64)
        errors.append(np.einsum("oi,ij,oj->o", moved, damped, moved))
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-4)).all()
    assert errors[-1].sum() < 0.97 * errors[0].sum()


def test_matrix_after_matrix_starts_no_new_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLX starts one for each new stream, and never ends it."""
    x, weight, quantization = inputs(), weights(256), Quantization(4, 64)
    packed_for(x.T @ x, weight, quantization, 3)
    monkeypatch.setattr(mx, "new_thread_local_stream", None)
    packed_for(x.T @ x, weight, quantization, 3)


def test_moved_inputs_are_made_good() -> None:
    """The packed path's inputs are another mixture; the corrected weight gives nearly the outputs of the float path."""
    f, weight = inputs(), weights()
    x = f @ (mx.eye(128) + 0.05 * mx.random.normal((128, 128), key=mx.random.key(3)))
    moments = Moments(x.T @ x, (f - x).T @ x)
    corrected = correct(weight, moments, inverse_factor(damp(moments.hessian, 1e-5)))
    wanted = f @ weight.T
    before, after = (mx.square(wanted - x @ w.T).sum().item() for w in (weight, corrected))
    assert after < 0.05 * before


def test_equal_inputs_need_no_correction() -> None:
    x, weight = inputs(), weights()
    moments = Moments(x.T @ x, mx.zeros((128, 128)))
    assert mx.array_equal(correct(weight, moments, inverse_factor(damp(moments.hessian, DAMPING))), weight)


def test_inputs_that_are_always_zero_change_nothing() -> None:
    """As the columns by which SigLIP's MLP is padded, and a channel that no picture of the calibration reaches."""
    x = inputs(columns=64)
    moments = Moments(x.T @ x, mx.zeros((64, 64))).padded(128)
    assert moments.hessian.shape == (128, 128)
    quantization, weight = Quantization(4, 64), mx.concatenate([weights(16, 64), mx.zeros((16, 64))], axis=1)
    padded = packed_for(moments.hessian, weight, quantization)
    plain = packed_for(x.T @ x, weight[:, :64], quantization)
    assert mx.array_equal(padded["weight"][:, :8], plain["weight"])
    assert not quantization.unpack(padded)[:, 64:].any().item()


def test_inputs_that_are_not_finite_are_one_line() -> None:
    with pytest.raises(PgMlxError, match="not finite numbers"):
        damp(mx.full((64, 64), float("inf")), DAMPING)


def test_wide_matrices_come_in_blocks_of_whole_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    assert column_blocks(9216) == [slice(0, 9216)]
    assert [(b.start, b.stop) for b in column_blocks(36864)] == [(n * 9216, (n + 1) * 9216) for n in range(4)]
    assert [(b.start, b.stop) for b in column_blocks(16384)] == [(0, 8192), (8192, 16384)]
    assert column_blocks(4304) == [slice(0, 4304)]
    monkeypatch.setattr(gptq, "MAX_COLUMNS", 256)
    assert [(b.start, b.stop) for b in column_blocks(576)] == [(0, 256), (256, 512), (512, 576)]
