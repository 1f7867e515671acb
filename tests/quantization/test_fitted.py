"""Codes packed as MLX packs them, and scales that are fitted to the weights."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from pg_mlx.quantization import Quantization, pack_fitted
from pg_mlx.quantization.affine import fit
from pg_mlx.quantization.codes import pack_codes
from pg_mlx.quantization.modes import AFFINE_BITS
from pg_mlx.quantization.reference import _codes

BITS = pytest.mark.parametrize("bits", AFFINE_BITS)


def normal(outputs: int, columns: int, seed: int = 0) -> mx.array:
    return mx.random.normal((outputs, columns), key=mx.random.key(seed)) * 0.02


def error(weight: mx.array, quantization: Quantization, arrays: dict[str, mx.array]) -> float:
    """RMS, relative to the RMS of the weight."""
    difference = quantization.unpack(arrays) - weight.astype(mx.float32)
    return (mx.linalg.norm(difference) / mx.linalg.norm(weight.astype(mx.float32))).item()


@BITS
def test_codes_are_packed_as_mlx_packs_them(bits: int) -> None:
    packed = Quantization(bits, 32).pack(normal(24, 160))["weight"]
    codes = mx.array(_codes(np.array(packed), bits).astype(np.uint8))
    assert mx.array_equal(pack_codes(codes, bits), packed)


@BITS
def test_every_code_comes_back(bits: int) -> None:
    codes = np.arange(2**bits, dtype=np.uint8).repeat(32).reshape(-1, 32).T.copy()  # [32, 2 ** bits]
    if codes.shape[1] % 32:
        codes = np.tile(codes, (1, 32 // codes.shape[1]))
    assert (_codes(np.array(pack_codes(mx.array(codes), bits)), bits) == codes).all()


@BITS
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32], ids=str)
def test_a_fitted_matrix_has_the_form_of_a_packed_one(bits: int, dtype: mx.Dtype) -> None:
    quantization, weight = Quantization(bits, 64), normal(16, 128).astype(dtype)
    fitted, packed = pack_fitted(weight, quantization, dtype), quantization.pack(weight)
    assert list(fitted) == list(packed)
    assert all((fitted[part].shape, fitted[part].dtype) == (a.shape, a.dtype) for part, a in packed.items())


@pytest.mark.parametrize(("bits", "share"), [(2, 0.85), (3, 0.9), (4, 0.93), (5, 0.96), (6, 0.96), (8, 0.82)])
def test_fitting_leaves_less_error_than_mlx(bits: int, share: float) -> None:
    quantization, weight = Quantization(bits, 64), normal(256, 512).astype(mx.bfloat16)
    fitted = error(weight, quantization, pack_fitted(weight, quantization, mx.bfloat16))
    assert fitted <= share * error(weight, quantization, quantization.pack(weight))


def test_eight_bits_of_a_normal_matrix() -> None:
    weight, quantization = normal(512, 2048).astype(mx.bfloat16), Quantization(8, 64)
    assert error(weight, quantization, pack_fitted(weight, quantization, mx.bfloat16)) <= 0.0053


def test_a_grid_that_fits_exactly_is_found() -> None:
    """Sixteen values on a line, in a coarse scale that bfloat16 has: nothing is lost."""
    values = (mx.arange(64) % 16).astype(mx.float32)[None] * 0.25 - 1.5
    grid = fit(values, 4, mx.bfloat16, axis=-1)
    assert (grid.scale.item(), grid.bias.item()) == (0.25, -1.5)
    assert mx.array_equal(grid.values(grid.codes(values)), values)


@pytest.mark.parametrize("value", [0.0, 0.5, -3.0, 1e-8])
def test_a_group_of_equal_values_is_kept(value: float) -> None:
    """As the zeros are by which SigLIP's MLP is padded."""
    quantization = Quantization(4, 64)
    arrays = pack_fitted(mx.full((2, 64), value), quantization, mx.float32)
    assert mx.array_equal(quantization.unpack(arrays), mx.full((2, 64), value))


def test_weights_of_the_error_count() -> None:
    """A group of which only the first half matters is fitted to that half."""
    values = normal(8, 64)
    weights = mx.concatenate([mx.ones((8, 32)), mx.full((8, 32), 1e-6)], axis=1)

    def loss(weights_of_fit: mx.array | None) -> float:
        grid = fit(values, 3, mx.float32, -1, weights_of_fit)
        return (weights * mx.square(values - grid.values(grid.codes(values)))).sum().item()

    assert loss(weights) < 0.9 * loss(None)
