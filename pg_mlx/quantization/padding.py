"""Zero padding that makes a matrix fit whole groups without changing what the model computes.

SigLIP's MLP is 4304 wide, which no group size but 16 divides. It is padded to 4352 = 34 x 128. fc1 gets 48 more outputs
of zeros (and zero biases), which become gelu(0) = 0. fc2 gets as many columns, which multiply those zeros. The result
is exact, at 1.1 % more work.
"""

from __future__ import annotations

import mlx.core as mx


def padded_size(size: int, multiple: int = 128) -> int:
    """The next multiple: 4304 -> 4352."""
    return -(-size // multiple) * multiple


def pad_rows(array: mx.array, rows: int) -> mx.array:
    """A vector [outputs] or matrix [outputs, columns] with zeros appended up to `rows` outputs."""
    if rows == array.shape[0]:
        return array  # padding by nothing would still copy
    return mx.pad(array, [(0, rows - array.shape[0])] + [(0, 0)] * (array.ndim - 1))


def pad_columns(array: mx.array, columns: int) -> mx.array:
    """A matrix [outputs, n] with zeros appended up to `columns` columns."""
    if columns == array.shape[1]:
        return array
    return mx.pad(array, [(0, 0), (0, columns - array.shape[1])])
