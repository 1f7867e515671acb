"""The reference that MLX's kernels are compared with: a packed matrix unpacked bit by bit in NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .modes import Quantization

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
"""The magnitudes of 4-bit floats; the fourth bit is the sign (OCP Microscaling Formats 1.0)."""


def spelled_out(quantization: Quantization, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """weight uint32 [outputs, words], scales and, in affine mode, biases [outputs, groups] -> float64
    [outputs, columns]."""
    codes = _codes(arrays["weight"], quantization.bits)
    scales = arrays["scales"]
    mode = quantization.mode
    values = codes if mode == "affine" else _e4m3(codes) if mode == "mxfp8" else _e2m1(codes)
    if mode != "affine":
        scales = _e4m3(scales) if mode == "nvfp4" else np.exp2(scales.astype(np.float64) - 127)
    groups = values.reshape(len(codes), -1, quantization.group_size) * scales[..., None].astype(np.float64)
    if mode == "affine":
        groups = groups + arrays["biases"][..., None].astype(np.float64)
    return groups.reshape(codes.shape)


def _codes(words: np.ndarray, bits: int) -> np.ndarray:
    """Packed words [outputs, words] -> codes [outputs, columns]. The words of an output are one stream of bits, lowest
    first."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")
    return stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits))


def _e2m1(codes: np.ndarray) -> np.ndarray:
    return np.where(codes & 8, -1, 1) * _E2M1[codes & 7]


def _e4m3(codes: np.ndarray) -> np.ndarray:
    """Sign, 4 bits of exponent with a bias of 7, 3 of mantissa; exponent 0 means subnormal."""
    codes = codes.astype(np.int64)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    magnitude = np.where(exponent > 0, (8 + mantissa) * np.exp2(exponent - 10.0), mantissa * np.exp2(-9.0))
    return np.where(codes & 128, -magnitude, magnitude)
