"""One step: gradients of all micro-batches and processes, summed and divided once; then the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ..errors import InputError
from ..ops import device
from ..paligemma import PaliGemma
from .adapting import TrainedAdapter
from .batch import TrainingBatch
from .forward import Inputs, checkpointed, plainly
from .loss import LossOptions, inputs_of, loss_count, loss_sum
from .optimizer import Optimizer, OptimizerOptions, Weights

GPU_MULTIPLE = 16
"""On a GPU lengths are padded to multiples of this, so that compiled steps fit again."""


@dataclass(frozen=True)
class StepOptions:
    """How steps are made.

    checkpoint: layers keep only their inputs, and the backward pass computes them again: less memory, a third more
    time, the same result bit by bit. compiled: one graph for each shape, made by mx.compile; None (default): on a GPU.
    """

    loss: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    checkpoint: bool = False
    compiled: bool | None = None


@dataclass(frozen=True)
class StepResult:
    """What a step has done. loss: the mean before its update, over all micro-batches and processes. count: what the
    mean is over, suffix tokens or rows. gradient_norm: of all gradients together, before clipping."""

    loss: float
    count: int
    gradient_norm: float
    learning_rate: float


@dataclass(frozen=True)
class MicroBatch:
    """Some rows of a step, and their numbers in the whole step, of which dropout is a function."""

    batch: TrainingBatch
    rows: tuple[int, ...] | None = None
    """One number a row; None: they are counted through the micro-batches, as in a single process."""


class Trainer:
    """Steps for a model that has been prepared by `adapt` or `train_all`.

    What is learnt is kept and updated in float32, whatever the model computes in. group: the processes that share a
    step (mx.distributed.init()). Raises InputError if the model has nothing to learn.
    """

    def __init__(
        self,
        model: PaliGemma,
        options: StepOptions = StepOptions(),
        adapter: TrainedAdapter | None = None,
        group: mx.distributed.Group | None = None,
    ):
        self.model, self.options, self.adapter = model, options, adapter
        self._group = group
        self._optimizer = Optimizer(options.optimizer)
        learnt: Any = tree_flatten(model.trainable_parameters())
        self._dtypes = {name: array.dtype for name, array in learnt}
        self.weights: Weights = {name: array.astype(mx.float32) for name, array in learnt}
        """What is learnt, float32, by path in the model."""
        if not self.weights:
            raise InputError("nothing of the model is to be learnt")
        self._compiled = device.is_gpu() if options.compiled is None else options.compiled
        self._functions: dict[bool, Callable[..., Any]] = {}

    def step(self, batches: Iterable[TrainingBatch | MicroBatch], number: int, learning_rate: float) -> StepResult:
        """Learn from micro-batches together, as from one batch. number: of the step, from 0, for dropout. A process of
        a group may have no batch at all, but must call this for every step. Raises InputError if none has one."""
        total: Weights = {}
        loss, count, rows = mx.array(0.0), 0, 0
        for given in batches:
            micro = given if isinstance(given, MicroBatch) else MicroBatch(given)
            numbers = micro.rows or tuple(range(rows, rows + micro.batch.rows))
            rows += micro.batch.rows
            more, gradients = self.gradients(micro.batch, number, numbers)
            gradients = {name: gradient.astype(mx.float32) for name, gradient in gradients.items()}
            total = {name: total[name] + array for name, array in gradients.items()} if total else gradients
            del gradients
            loss, count = loss + more, count + loss_count(micro.batch, self.options.loss)
            mx.eval(total, loss)
        total = total or {name: mx.zeros_like(weight) for name, weight in self.weights.items()}
        total, loss, count = self._summed(total, loss, count)
        if not count:
            raise InputError("a step needs at least one row")
        mean = {name: array / count for name, array in total.items()}
        weights, norm = self._optimizer.update(self.weights, mean, learning_rate)
        mx.eval(weights, norm, self._optimizer.state())
        self._put(weights)
        return StepResult(_number(loss) / count, count, _number(norm), learning_rate)

    def gradients(
        self, batch: TrainingBatch, number: int = 0, rows: Iterable[int] | None = None
    ) -> tuple[mx.array, Weights]:
        """The sum of the loss over a batch, float32 [], and its gradients by path in the model, not divided. Not yet
        evaluated. number, rows: of the step and of its rows, for dropout."""
        multiple = GPU_MULTIPLE if self._compiled else 1
        inputs = inputs_of(batch, self.options.loss, multiple)
        dropout: list[mx.array] = []
        if self.adapter is not None and self.adapter.dropout.rate:
            numbers = list(range(batch.rows) if rows is None else rows)
            first = dict(reversed(list(zip(batch.image_index, numbers, strict=True))))
            images = [first.get(image, 0) for image in range(inputs.images.shape[0])]
            self.adapter.dropout.begin(number, numbers, images)
            dropout = self.adapter.dropout.state()
        parameters = self.model.trainable_parameters()
        arrays = {name: value for name, value in vars(inputs).items() if isinstance(value, mx.array)}
        try:
            with device.gradients():
                loss, found = self._function(inputs.encoded)(parameters, arrays, dropout)
        finally:
            self.model.update(parameters)  # the trace has left its own arrays there
        return loss, dict(tree_flatten(found))

    def loss(self, batch: TrainingBatch) -> tuple[float, int]:
        """The sum of the loss over a batch, without gradients or dropout, and what its mean is over."""
        options = self.options.loss
        return _number(loss_sum(self.model, inputs_of(batch, options), options)), loss_count(batch, options)

    def state(self) -> dict[str, mx.array]:
        """What the next step depends on, beside the model's frozen weights: "weights.<path>" and "optimizer.<name>"."""
        optimizer = self._optimizer.state()
        return {f"weights.{name}": array for name, array in self.weights.items()} | {
            f"optimizer.{name}": array for name, array in optimizer.items()
        }

    def restore(self, state: Mapping[str, mx.array]) -> None:
        """Go on from a `state`; the next step is then the same bit by bit. Raises InputError for one of another model
        or of other options."""
        weights = {name.removeprefix("weights."): array for name, array in state.items() if name.startswith("weights.")}
        if {name: array.shape for name, array in weights.items()} != {n: a.shape for n, a in self.weights.items()}:
            raise InputError("the state is not that of this model and these options")
        self._optimizer.restore(
            {name.removeprefix("optimizer."): array for name, array in state.items() if name.startswith("optimizer.")}
        )
        self._put(weights)

    def _put(self, weights: Weights) -> None:
        self.weights = weights
        self.model.update(tree_unflatten([(name, array.astype(self._dtypes[name])) for name, array in weights.items()]))

    def _function(self, encoded: bool) -> Callable[..., Any]:
        """(parameters, arrays of Inputs, arrays of Dropout) -> loss and gradients; compiled where that is wanted."""
        if encoded not in self._functions:
            function = mx.value_and_grad(_loss_of(self.model, self.options, self.adapter, encoded))
            self._functions[encoded] = mx.compile(function) if self._compiled else function
        return self._functions[encoded]

    def _summed(self, gradients: Weights, loss: mx.array, count: int) -> tuple[Weights, mx.array, int]:
        """The sums over all processes, in one message."""
        if self._group is None or self._group.size() == 1:
            return gradients, loss, count
        parts = [*(gradient.flatten() for gradient in gradients.values()), loss[None], mx.array([count], mx.float32)]
        sums = mx.distributed.all_sum(mx.concatenate(parts), group=self._group)
        *flat, loss, total = mx.split(sums, [int(end) for end in _ends(parts)])
        pairs = zip(gradients.items(), flat, strict=True)
        return {name: one.reshape(array.shape) for (name, array), one in pairs}, loss[0], int(_number(total))


def _loss_of(
    model: PaliGemma, options: StepOptions, adapter: TrainedAdapter | None, encoded: bool
) -> Callable[..., Any]:
    """(parameters, arrays of Inputs, arrays of Dropout) -> the sum of the loss.

    It does not refer to the trainer, which keeps it: a circle would hold the model until Python's collector runs, and
    that counts objects, not their bytes.
    """

    def loss(parameters: Any, arrays: dict[str, mx.array], dropout: list[mx.array]) -> mx.array:
        model.update(parameters)
        if adapter is not None and dropout:
            adapter.dropout.restore(dropout)
        run = checkpointed if options.checkpoint else plainly
        return loss_sum(model, Inputs(encoded=encoded, **arrays), options.loss, run)

    return loss


def _number(array: mx.array) -> float:
    value: Any = array.item()
    return float(value)


def _ends(parts: list[mx.array]) -> Iterator[int]:
    end = 0
    for part in parts[:-1]:
        end += part.size
        yield end
