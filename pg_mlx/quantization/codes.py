"""Plain packing: small whole numbers into MLX's 32-bit words. The reverse is in reference.py."""

from __future__ import annotations

import mlx.core as mx
import numpy as np


def pack_codes(codes: mx.array, bits: int) -> mx.array:
    """codes uint8 [outputs, columns], below 2 ** bits -> uint32 [outputs, columns * bits / 32].

    The words of an output are one stream of bits, lowest first. columns: a multiple of 32.
    """
    outputs, columns = codes.shape
    values = np.array(codes, copy=False)
    if bits != 8:
        stream = np.unpackbits(values[..., None], axis=-1, count=bits, bitorder="little")
        values = np.packbits(stream.reshape(outputs, columns * bits), axis=-1, bitorder="little")
    return mx.array(np.ascontiguousarray(values).view("<u4"))
