"""LoRA and DoRA beside a linear layer that stays as it is, float or packed.

LoRA (Hu et al. 2021, arXiv 2106.09685): y = W x + scale * B (A x), with thin A [R, columns] and B [outputs, R]. DoRA
(Liu et al. 2024, arXiv 2402.09353) then gives each row of the sum a length of its own, a magnitude; the row's length
before that is a constant to the gradient. A fused layer has a pair for each of its projections, as PEFT trains them,
and computes them as one pair: A under A, and each B in its own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..linear import Linear, Parallel
from ..ops import device


class Pair(nn.Module):
    """What is learnt beside one projection: lora_A float32 [R, columns], lora_B float32 [outputs, R] and for DoRA
    magnitude float32 [outputs].

    name: the projection's canonical name. start: its first output in the fused layer. scale: alpha / R.
    """

    def __init__(self, name: str, start: int, scale: float, a: mx.array, b: mx.array):
        super().__init__()
        self.name, self.start, self.scale = name, start, scale
        self.lora_A, self.lora_B = a, b

    @property
    def stop(self) -> int:
        """The output after its last one."""
        return self.start + self.lora_B.shape[0]

    def outputs(self, start: int, stop: int) -> Pair | None:
        """The pair of outputs start..stop-1 of the fused layer, counted from 0 then; None if it has none of them."""
        first, last = max(start, self.start), min(stop, self.stop)
        if first >= last:
            return None
        own = slice(first - self.start, last - self.start)
        part = Pair(self.name, first - start, self.scale, self.lora_A, self.lora_B[own])
        if "magnitude" in self:
            part.magnitude, part._squares = self.magnitude[own], self._squares[own]
        return part

    def learn_lengths(self, weight_squares: mx.array, magnitude: mx.array | None = None) -> None:
        """Make it DoRA. weight_squares float32 [outputs]: sums of squares of the base's rows. magnitude: where to
        start, if not at the lengths that the rows have."""
        self._squares = weight_squares
        self.magnitude = mx.sqrt(weight_squares) if magnitude is None else magnitude

    def stretch(self, product: mx.array) -> mx.array:
        """By what DoRA multiplies each output, float32 [outputs]; product: W A^T, [outputs, R], of the base's rows.

        ||W + s B A||^2 = ||W||^2 + 2 s (B . W A^T) + s^2 (B A A^T . B), so the large sum is never made. Rows of zeros
        (padding) stay zeros.
        """
        a, b = mx.stop_gradient(self.lora_A), mx.stop_gradient(self.lora_B)
        cross, thin = mx.stop_gradient(product).astype(mx.float32), b @ (a @ a.T)
        squares = self._squares + (b * (2 * self.scale * cross + self.scale**2 * thin)).sum(axis=1)
        return mx.where(squares > 0, self.magnitude / mx.sqrt(mx.maximum(squares, 1e-30)), 0)


class Dropout:
    """What a training step sets for all its layers: how much of their inputs is left out, and for which rows.

    A mask is a function of the seed, the step, the row's number in the whole step, the layer, the token and the column.
    So neither micro-batches nor processes nor padding change it, and a run that goes on computes the same.
    """

    def __init__(self, rate: float = 0.0, seed: int = 0):
        self.rate, self.seed = rate, seed
        self._rows: dict[bool, mx.array] = {}

    def begin(self, step: int, rows: Sequence[int], images: Sequence[int]) -> None:
        """For a micro-batch: the numbers of its rows in the whole step; and for layers that read pictures a row that
        has each picture."""
        for of_images, numbers in ((False, rows), (True, images)):
            words = [np.random.SeedSequence([self.seed, step, number]).generate_state(1)[0] for number in numbers]
            self._rows[of_images] = mx.array(np.array(words, np.uint32))

    def state(self) -> list[mx.array]:
        """The arrays that `begin` makes, for a compiled step to read."""
        return [self._rows[key] for key in sorted(self._rows)]

    def restore(self, state: Sequence[mx.array]) -> None:
        """Put arrays of `state` back, or what a compiled step has in their place."""
        self._rows = dict(zip(sorted(self._rows), state, strict=True))

    def __call__(self, x: mx.array, layer: int, of_images: bool) -> mx.array:
        """x [B, T, columns], some values zero and the others larger to make up for them. layer: a number for each."""
        rows, (batch, tokens, columns) = self._rows[of_images], x.shape
        first = mx.broadcast_to((rows ^ mx.array(layer, dtype=mx.uint32))[:, None], (batch, tokens))
        second = mx.broadcast_to(mx.arange(tokens, dtype=mx.uint32), (batch, tokens))
        draw = mx.vmap(mx.vmap(lambda key: mx.random.uniform(shape=(columns,), key=key)))
        kept = draw(mx.stack([first, second], axis=-1)) >= self.rate
        return mx.where(kept, x / (1 - self.rate), mx.array(0, x.dtype))


class _Fused(NamedTuple):
    """The pairs of a layer as one: down [R, columns], up [outputs, R] with each pair's scale, and for DoRA stretch
    [outputs]."""

    down: mx.array
    up: mx.array
    stretch: mx.array | None


class LowRank(nn.Module):
    """A linear layer with pairs beside it, in its place: x [..., columns] -> [..., outputs].

    pairs: in the order of their outputs, with magnitudes or all without. of_images: whether its input belongs to
    pictures, not to rows. number: of the layer, for dropout.
    """

    def __init__(
        self,
        base: Linear | Parallel,
        pairs: Sequence[Pair],
        dropout: Dropout | None = None,
        number: int = 0,
        of_images: bool = False,
    ):
        super().__init__()
        self.base, self.pairs = base, list(pairs)
        self._dropout, self._number, self._of_images = dropout, number, of_images
        self._ready: tuple[list[mx.array], mx.Dtype, _Fused] | None = None
        self.base.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        """x [..., columns] -> [..., outputs] in x's dtype."""
        fused = self._fused(x.dtype)
        dropped = x
        if self._dropout is not None and self._dropout.rate and device.traces_gradients():
            dropped = self._dropout(x, self._number, self._of_images)
        thin = dropped @ fused.down.T
        if fused.stretch is None:
            return self.base(x) + thin @ fused.up.T
        y = (product(self.base, x) + thin @ fused.up.T) * fused.stretch
        bias = _bias(self.base)
        return y if bias is None else y + bias

    def unbiased(self, x: mx.array) -> tuple[mx.array, None]:
        """As Linear.unbiased, with nothing left to add."""
        return self(x), None

    def outputs(self, start: int, stop: int) -> LowRank:
        """The layer that computes outputs start..stop-1 only, without dropout. It shares memory with this one."""
        pairs = [part for part in (pair.outputs(start, stop) for pair in self.pairs) if part is not None]
        base = self.base.outputs(start, stop)
        return LowRank(base, pairs) if pairs else base  # type: ignore[return-value]

    def _fused(self, dtype: mx.Dtype) -> _Fused:
        """The pairs as one, in the dtype of activations. Made once until the pairs change, unless gradients are traced:
        then they are part of the trace."""
        arrays = [pair[name] for pair in self.pairs for name in ("lora_A", "lora_B", "magnitude") if name in pair]
        if not device.traces_gradients() and self._ready is not None:
            before, of_dtype, fused = self._ready
            if of_dtype == dtype and all(one is other for one, other in zip(before, arrays, strict=True)):
                return fused
        fused = self._fuse(dtype)
        if not device.traces_gradients():
            self._ready = arrays, dtype, fused
        return fused

    def _fuse(self, dtype: mx.Dtype) -> _Fused:
        rank = sum(pair.lora_A.shape[0] for pair in self.pairs)
        down = mx.concatenate([pair.lora_A for pair in self.pairs], axis=0).astype(dtype)
        has_lengths = "magnitude" in self.pairs[0]
        products = product(self.base, mx.stop_gradient(down)).T if has_lengths else None
        ups, stretches, row, column = list[mx.array](), list[mx.array](), 0, 0
        for pair in self.pairs:
            own = slice(column, column + pair.lora_A.shape[0])
            ups.append(mx.pad(pair.lora_B * pair.scale, [(pair.start - row, 0), (own.start, rank - own.stop)]))
            if products is not None:
                stretches += [mx.ones((pair.start - row,)), pair.stretch(products[pair.start : pair.stop, own])]
            row, column = pair.stop, own.stop
        rest = num_outputs(self.base) - row
        up = mx.concatenate([*ups, mx.zeros((rest, rank))], axis=0).astype(dtype)
        stretch = mx.concatenate([*stretches, mx.ones((rest,))]).astype(dtype) if has_lengths else None
        return _Fused(down, up, stretch)


def num_outputs(base: Linear | Parallel) -> int:
    """Outputs of a layer."""
    return base.num_outputs if isinstance(base, Linear) else sum(part.num_outputs for part in base.parts)


def product(base: Linear | Parallel, x: mx.array) -> mx.array:
    """x [..., columns] -> x @ weight.T [..., outputs], without the bias."""
    if isinstance(base, Linear):
        return base.multiply(x)
    return mx.concatenate([part.multiply(x) for part in base.parts], axis=-1)


def row_squares(base: Linear | Parallel) -> mx.array:
    """The sum of squares of each row of the weight, float32 [outputs], evaluated some rows at a time."""
    parts = [base] if isinstance(base, Linear) else base.parts
    step, done = 1024, []
    for part in parts:
        for first in range(0, part.num_outputs, step):
            some = part.outputs(first, min(first + step, part.num_outputs))
            done.append(mx.square(some.dequantized(mx.float32)).sum(axis=1))
            mx.eval(done[-1])
    return mx.concatenate(done)


def _bias(base: Linear | Parallel) -> mx.array | None:
    if isinstance(base, Linear):
        return base.get("bias")
    biases = [part.bias for part in base.parts if "bias" in part]
    return mx.concatenate(biases) if biases else None
