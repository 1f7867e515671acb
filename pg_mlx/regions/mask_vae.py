"""<seg> codes to masks and back: the two halves of big_vision's VQ-VAE for masks of 64 x 64.

Names and layouts of the weights are those of its checkpoint vae-oid.npz, which came from PyTorch; channel widths are
read from the arrays. The network is described in https://arxiv.org/abs/2301.02229; big_vision runs it in
`evaluators/proj/paligemma/transfers/segmentation.py`. All of it is small, so it always runs in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..errors import InputError, PgMlxError

MASK_SIDE = 64
"""Height and width of a decoded mask."""
CODEBOOK_SIZE = 128
"""Entries of the codebook: <seg000> to <seg127>."""
_GRID = 4
"""Codes along each side of a mask."""
_CODEBOOK = "_vq_vae._embedding"
_AT_ONCE = 32
"""Masks of one pass, which bounds the memory: a convolution may unfold its input, up to 2 MB a mask."""
_DOUBLING, _HALVING = (4, 6, 8, 10), (0, 2, 4, 6)
"""Numbers of the layers that change the size. The numbers between them are ReLUs in the original."""

Shapes = Mapping[str, tuple[int, ...]]
Weights = Mapping[str, mx.array]


def decoder_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shape that each array of the decoder must have. Widths are read from the arrays themselves.

    shapes: of the arrays in a file, by name. Raises InputError if an array that determines a width is missing.
    """
    width = _dim(shapes, _CODEBOOK, 1)
    expected: dict[str, tuple[int, ...]] = {_CODEBOOK: (CODEBOOK_SIZE, width)}
    channels = _dim(shapes, "decoder.0.weight", 0)
    expected |= _layer("decoder.0", channels, (channels, width, 1, 1))
    expected |= _residual("decoder.2.net", channels) | _residual("decoder.3.net", channels)
    for number in _DOUBLING:
        # Transposed convolutions have their inputs first.
        outputs = _dim(shapes, f"decoder.{number}.weight", 1)
        expected |= _layer(f"decoder.{number}", outputs, (channels, outputs, 4, 4))
        channels = outputs
    return expected | _layer("decoder.12", 1, (1, channels, 1, 1))


def encoder_shapes(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """As decoder_shapes, for the encoder."""
    width = _dim(shapes, _CODEBOOK, 1)
    expected: dict[str, tuple[int, ...]] = {_CODEBOOK: (CODEBOOK_SIZE, width)}
    channels = 1
    for number in _HALVING:
        outputs = _dim(shapes, f"encoder.{number}.weight", 0)
        expected |= _layer(f"encoder.{number}", outputs, (outputs, channels, 4, 4))
        channels = outputs
    expected |= _residual("encoder.8.net", channels) | _residual("encoder.9.net", channels)
    return expected | _layer("encoder.10", width, (width, channels, 1, 1))


def _dim(shapes: Shapes, name: str, axis: int) -> int:
    if len(shapes.get(name, ())) <= axis:
        raise InputError(f"it lacks {name}, or its shape is wrong")
    return shapes[name][axis]


def _layer(name: str, outputs: int, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": (outputs,)}


def _residual(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    sides = {0: 3, 2: 3, 4: 1}
    layers = (_layer(f"{name}.{n}", channels, (channels, channels, s, s)) for n, s in sides.items())
    return {key: shape for layer in layers for key, shape in layer.items()}


def read_masks(path: str | Path) -> dict[str, mx.array]:
    """The decoder's arrays, and the encoder's if the file has them, by name and checked. Raises InputError."""
    from ..files.arrays import read_arrays

    weights = read_arrays(path)
    wanted = _chosen(weights, str(path), decoder_shapes)
    if any(name.startswith("encoder.") for name in weights):
        wanted |= _chosen(weights, str(path), encoder_shapes)
    return wanted


class _Network:
    """Weights as MLX needs them, by name: kernels [out, height, width, in], all float32.

    transposed: the layers that are transposed convolutions.
    """

    def __init__(self, weights: Weights, transposed: Sequence[str] = ()):
        self.codebook = weights[_CODEBOOK].astype(mx.float32)
        self._layers: dict[str, tuple[mx.array, mx.array]] = {}
        for name in {key.rpartition(".")[0] for key in weights if key.endswith(".weight")}:
            kernel = weights[f"{name}.weight"].astype(mx.float32)
            kernel = _phases(kernel) if name in transposed else kernel.transpose(0, 2, 3, 1)
            self._layers[name] = mx.contiguous(kernel), weights[f"{name}.bias"].astype(mx.float32)
        mx.eval(self.codebook, self._layers)

    def conv(self, name: str, x: mx.array, stride: int = 1, padding: int = 0) -> mx.array:
        kernel, bias = self._layers[name]
        return mx.conv2d(x, kernel, stride, padding) + bias

    def double(self, name: str, x: mx.array) -> mx.array:
        """A transposed convolution (4 x 4, stride 2, padding 1): each side becomes twice as long."""
        kernel, bias = self._layers[name]
        batch, height, width, _ = x.shape
        x = mx.conv2d(x, kernel, padding=1).reshape(batch, height, width, 2, 2, -1) + bias
        return x.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, -1)

    def residual(self, name: str, x: mx.array) -> mx.array:
        y = _relu(self.conv(f"{name}.0", x, padding=1))
        y = _relu(self.conv(f"{name}.2", y, padding=1))
        return x + self.conv(f"{name}.4", y)


def _phases(kernel: mx.array) -> mx.array:
    """A transposed kernel [in, out, 4, 4] as a plain one [4 * out, 3, 3, in]: a quarter for each place in a 2 x 2.

    Output 2j is the inputs j - 1 and j by the kernel's columns 3 and 1, output 2j + 1 is j and j + 1 by 2 and 0. MLX
    has transposed convolutions, but its CPU backend does not make matrix products of them: some 370 times slower for
    the last layer.
    """
    taps = mx.array([[3, 1, 4], [4, 2, 0]])  # 4 is a column of zeros
    kernel = mx.pad(kernel, [(0, 0), (0, 0), (0, 1), (0, 1)])
    kernel = kernel[:, :, taps][..., taps]  # [in, out, 2, 3, 2, 3]
    return kernel.transpose(2, 4, 1, 3, 5, 0).reshape(-1, 3, 3, kernel.shape[0])


class MaskDecoder:
    """Codes to masks. Build it with `load`, or from arrays by their names in vae-oid.npz."""

    def __init__(self, weights: Weights, name: str = "the mapping"):
        """name: where the weights are from, for messages. Raises InputError if one is missing or has a wrong shape."""
        doubling = [f"decoder.{number}" for number in _DOUBLING]
        self._net = _Network(_chosen(weights, name, decoder_shapes), doubling)

    @classmethod
    def load(cls, path: str | Path) -> MaskDecoder:
        """From vae-oid.npz, or from the file that conversion makes of it. Raises InputError if it is neither."""
        from ..files.arrays import read_arrays

        return cls(read_arrays(path), str(path))

    def __call__(self, codes: Any) -> mx.array:
        """codes: int [B, 16] in 0..127, anything that mx.array takes. Returns float32 [B, 64, 64], nominally -1..1;
        the object is where it is positive. Raises InputError for other codes, and PgMlxError where the network's
        weights are no numbers."""
        codes = mx.array(codes)
        if codes.ndim != 2 or codes.shape[1] != _GRID * _GRID or not mx.issubdtype(codes.dtype, mx.integer):
            raise InputError(f"mask codes are whole numbers [B, 16], not {codes.dtype} {list(codes.shape)}")
        if codes.shape[0] == 0:
            return mx.zeros((0, MASK_SIDE, MASK_SIDE))
        if codes.min().item() < 0 or codes.max().item() >= CODEBOOK_SIZE:
            raise InputError(f"mask codes run from 0 to {CODEBOOK_SIZE - 1}")
        slices = [self._decode(codes[start : start + _AT_ONCE]) for start in range(0, codes.shape[0], _AT_ONCE)]
        masks = mx.concatenate(slices)
        if mx.isnan(masks).any().item():
            raise PgMlxError("the mask decoder computes no numbers (NaN), so its file is damaged")
        return masks

    def _decode(self, codes: mx.array) -> mx.array:
        x = self._net.codebook[codes].reshape(-1, _GRID, _GRID, self._net.codebook.shape[1])
        x = _relu(self._net.conv("decoder.0", x))
        x = self._net.residual("decoder.3.net", self._net.residual("decoder.2.net", x))
        for number in _DOUBLING:
            x = _relu(self._net.double(f"decoder.{number}", x))
        masks = self._net.conv("decoder.12", x).squeeze(-1)
        mx.eval(masks)
        return masks


class MaskEncoder:
    """Masks to codes, as training data needs them. Build it with `load`, or from arrays as MaskDecoder."""

    def __init__(self, weights: Weights, name: str = "the mapping"):
        """name: where the weights are from, for messages. Raises InputError if one is missing or has a wrong shape."""
        self._net = _Network(_chosen(weights, name, encoder_shapes))

    @classmethod
    def load(cls, path: str | Path) -> MaskEncoder:
        """As MaskDecoder.load; raises InputError too if the file holds only the decoder."""
        from ..files.arrays import read_arrays

        return cls(read_arrays(path), str(path))

    def __call__(self, masks: Any) -> mx.array:
        """masks: [B, 64, 64], bool or floats in 0..1. Returns int32 [B, 16], for each cell the nearest codebook row.
        Raises InputError for another shape."""
        masks = mx.array(masks).astype(mx.float32)
        if masks.ndim != 3 or masks.shape[1:] != (MASK_SIDE, MASK_SIDE):
            raise InputError(f"masks are [B, {MASK_SIDE}, {MASK_SIDE}], not {list(masks.shape)}")
        if masks.shape[0] == 0:
            return mx.zeros((0, _GRID * _GRID), mx.int32)
        x = 2 * (masks[..., None] - 0.5)
        for number in _HALVING:
            x = _relu(self._net.conv(f"encoder.{number}", x, stride=2, padding=1))
        x = self._net.residual("encoder.9.net", self._net.residual("encoder.8.net", x))
        x = self._net.conv("encoder.10", x)
        rows, codebook = x.reshape(-1, x.shape[-1]), self._net.codebook
        distances = mx.square(codebook).sum(-1) - 2 * (rows @ codebook.T)  # |row|^2 is the same for all
        return distances.argmin(-1).reshape(-1, _GRID * _GRID).astype(mx.int32)


def _relu(x: mx.array) -> mx.array:
    return mx.maximum(x, 0)


def _chosen(
    weights: Weights, place: str, expected: Callable[[Shapes], dict[str, tuple[int, ...]]]
) -> dict[str, mx.array]:
    """The arrays that are needed, with their shapes checked. Others, such as the averages of training, are left out."""
    try:
        wanted = expected({name: tuple(array.shape) for name, array in weights.items()})
        for name, shape in wanted.items():
            _check(name, weights, shape)
    except InputError as error:
        raise InputError(f"{place} does not hold the mask network as big_vision publishes it: {error}") from None
    return {name: weights[name] for name in wanted}


def _check(name: str, weights: Weights, shape: tuple[int, ...]) -> None:
    if name not in weights:
        raise InputError(f"it lacks {name}")
    if tuple(weights[name].shape) != shape:
        raise InputError(f"{name} is {list(weights[name].shape)}, not {list(shape)}")
    if not mx.issubdtype(weights[name].dtype, mx.floating):
        raise InputError(f"{name} holds {weights[name].dtype}, not floating-point numbers")
