"""The optimizers, from `mlx.optimizers`, with the defaults that PaliGemma was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.optimizers as optim

from ..errors import InputError

Weights = dict[str, mx.array]
"""What is learnt, or its gradients, float32, by path in the model."""


@dataclass(frozen=True)
class OptimizerOptions:
    """Which optimizer, and its numbers. Making one raises InputError for impossible values.

    adamw: Loshchilov and Hutter 2019 (arXiv 1711.05101), as torch has it: with bias correction, which MLX leaves out by
    default, so that its first steps are three times as large. weight_decay: times the learning rate, and of matrices
    only: norms, biases and DoRA's magnitudes are never decayed. momentum: sgd's. clip: the largest norm of all
    gradients together; None for any.
    """

    name: Literal["adamw", "sgd", "adafactor"] = "adamw"
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("adamw", "sgd", "adafactor"):
            raise InputError(f"the optimizer is {self.name!r}, but must be adamw, sgd or adafactor")
        if not self.weight_decay >= 0 or not self.eps > 0:
            raise InputError(f"weight_decay {self.weight_decay} and eps {self.eps} are not possible")
        if not all(0 <= beta < 1 for beta in (*self.betas, self.momentum)):
            raise InputError(f"betas {self.betas} and momentum {self.momentum} must be from 0 to less than 1")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"gradients cannot be clipped to a norm of {self.clip}")


class Optimizer:
    """An optimizer with its state."""

    def __init__(self, options: OptimizerOptions):
        self.options = options
        self._inner: optim.Optimizer
        if options.name == "adamw":
            self._inner = optim.Adam(0.0, list(options.betas), options.eps, bias_correction=True)
        elif options.name == "sgd":
            self._inner = optim.SGD(0.0, options.momentum)
        else:
            self._inner = optim.Adafactor(0.0, scale_parameter=False, relative_step=False)

    def update(self, weights: Weights, gradients: Weights, learning_rate: float) -> tuple[Weights, mx.array]:
        """The weights after one step, and the norm of all gradients before clipping. Not yet evaluated."""
        norm = mx.sqrt(sum((mx.square(gradient).sum() for gradient in gradients.values()), mx.array(0.0)))
        if self.options.clip is not None:
            factor = mx.minimum(self.options.clip / (norm + 1e-6), 1.0)
            gradients = {name: gradient * factor for name, gradient in gradients.items()}
        if self.options.weight_decay:
            left = 1 - learning_rate * self.options.weight_decay
            weights = {name: weight * left if weight.ndim > 1 else weight for name, weight in weights.items()}
        self._inner.learning_rate = mx.array(learning_rate)
        return self._inner.apply_gradients(gradients, weights), norm

    def state(self) -> dict[str, mx.array]:
        """Everything that the next step depends on, by "<path in the model>/<name>" or name alone; evaluated with the
        weights."""
        flat = dict[str, mx.array]()
        for name, value in self._inner.state.items():
            flat |= (
                {f"{name}/{part}": array for part, array in value.items()} if isinstance(value, dict) else {name: value}
            )
        return flat

    def restore(self, state: Mapping[str, mx.array]) -> None:
        """Go on from a `state` of the same options and weights."""
        nested = dict[str, Any]()
        for key, array in state.items():
            name, _, part = key.rpartition("/")
            if name:
                nested.setdefault(name, {})[part] = array
            else:
                nested[part] = array
        self._inner.state = nested
        self._inner._initialized = "learning_rate" in nested and len(nested) > 2
