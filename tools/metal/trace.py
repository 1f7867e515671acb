"""The operations that a pass of pg_mlx gives to a GPU, with the layout of every array.

The pass itself is traced, by MLX's export, with the operations of a GPU: shapes only, nothing is computed, so a 28B
model takes no memory. Without a GPU, MLX builds fused functions (norms, rope, attention, compiled ones) from parts;
here each becomes one operation again. Whether attention is one is the chip's decision.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pg_mlx.ops import device
from pg_mlx.ops.device import mx

from .chips import Chip
from .layout import Layout

FAST = ("rms_norm", "layer_norm", "rope", "scaled_dot_product_attention")
Function = Callable[..., Any]


@dataclass(frozen=True)
class Operation:
    """One operation. name: MLX's, or that of a fused function. arguments: its settings. inputs, outputs: layouts; an
    output's is that of an array of its own."""

    name: str
    inputs: tuple[Layout, ...]
    outputs: tuple[Layout, ...]
    arguments: tuple[Any, ...] = ()


@dataclass
class _Recorder:
    chip: Chip
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def stand_in(self, name: str, function: Function) -> Function:
        """A function whose graph is one Depends node: empty outputs, its inputs, and a tag that numbers the call."""

        def call(*arguments: Any, **options: Any) -> Any:
            if name == FAST[-1] and not self.chip.fuses(arguments[0], arguments[1], options.get("mask")):
                return function(*arguments, **options)
            returned = function(*arguments, **options)
            outputs = returned if isinstance(returned, (list, tuple)) else [returned]
            empty = [mx.broadcast_to(mx.zeros((), output.dtype), output.shape) for output in outputs]
            given = [*arguments, *options.values()]
            settings = tuple(value for value in given if not isinstance(value, mx.array))
            inputs = [value for value in given if isinstance(value, mx.array)]
            self.calls.append((name, settings))
            results = mx.depends(empty, [*inputs, mx.zeros((len(self.calls), 0))])
            return results if isinstance(returned, (list, tuple)) else results[0]

        return call

    @contextmanager
    def patched(self) -> Iterator[None]:
        originals = {name: getattr(mx.fast, name) for name in FAST}
        compile_, dequantize, evaluate = mx.compile, mx.dequantize, mx.eval
        try:
            for name, original in originals.items():
                setattr(mx.fast, name, self.stand_in(name, original))
            unpack = self.stand_in("dequantize", dequantize)
            mx.dequantize = lambda *given, dtype: unpack(*given).astype(dtype)  # as MLX does in two operations
            mx.eval = lambda *_: None  # a tracer has no values
            mx.compile = lambda function, **_: self.stand_in(f"compiled {function.__name__.strip('_')}", function)
            yield
        finally:
            mx.compile, mx.dequantize, mx.eval = compile_, dequantize, evaluate
            for name, original in originals.items():
                setattr(mx.fast, name, original)


def trace(function: Function, arrays: Sequence[Any], chip: Chip) -> list[Operation]:
    """The operations of function(*arrays), a list of arrays. The given arrays are never evaluated."""
    recorder, entries = _Recorder(chip), list[dict[str, Any]]()

    def work() -> None:  # in a thread of its own, which has compiled nothing yet
        try:
            with device.use("gpu"), recorder.patched():
                mx.export_function(entries.append, function, *arrays)
        except BaseException as error:
            failed.append(error)

    failed: list[BaseException] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return list(_operations(entries, recorder.calls))


def _operations(entries: Sequence[dict[str, Any]], calls: Sequence[tuple[str, tuple[Any, ...]]]) -> Iterator[Operation]:
    known: dict[str, Layout] = {}
    for entry in entries:
        if entry["type"] == "inputs":
            known |= {name: Layout.new(shape, _dtype(dtype)) for name, shape, dtype in entry["inputs"]}
        if entry["type"] == "constants":
            known |= {name: Layout.new(array.shape, _dtype(array.dtype)) for name, array in entry["constants"]}
        if entry["type"] != "primitive":
            continue
        outputs = [Layout.new(shape, _dtype(dtype)) for _, shape, dtype in entry["outputs"]]
        names = [name for name, _, _ in entry["outputs"]]
        inputs = [known[name] for name, _, _ in entry["inputs"]]
        operation = Operation(entry["name"], tuple(inputs), tuple(outputs), _frozen(entry["arguments"]))
        if operation.name == "Depends":
            number = inputs[-1].shape[0] - 1
            operation = Operation(calls[number][0], tuple(inputs[len(outputs) : -1]), tuple(outputs), calls[number][1])
        if operation.name == "scaled_dot_product_attention":  # MLX lays its result out as [B, T, heads, head_dim]
            outputs = [_as_attention_leaves_it(operation)]
        views = _views(operation)
        if views is None:
            yield operation
            if operation.name in _KEEP_ORDER and all(layout.contiguous for layout in inputs):
                outputs = [Layout(o.shape, o.dtype, inputs[0].strides, 0, o.size) for o in outputs]
        known |= dict(zip(names, views or outputs, strict=True))


_KEEP_ORDER = {"AsType", "Square", "Softmax", "rms_norm"}
"""Operations whose result is laid out as their input is, if that has no gaps."""


def _as_attention_leaves_it(operation: Operation) -> Layout:
    query, value = operation.inputs[0], operation.inputs[2]
    batch, heads, length, _ = query.shape
    width = value.shape[-1]
    own = Layout.new((batch, length, heads, width), query.dtype)
    return own.transposed((0, 2, 1, 3)) if length > 8 else Layout.new((batch, heads, length, width), query.dtype)


def _views(operation: Operation) -> list[Layout] | None:
    """The layouts of the outputs, if they are views of the first input; None if something is computed or copied."""
    if not operation.inputs:
        return None
    source, arguments, shape = operation.inputs[0], operation.arguments, operation.outputs[0].shape
    match operation.name:
        case "Transpose":
            return [source.transposed(arguments[0])]
        case "ExpandDims":
            return [source.expanded(arguments[0])]
        case "Squeeze":
            return [source.squeezed(arguments[0])]
        case "Broadcast" | "BroadcastAxes":
            return [source.broadcast(shape)]
        case "Slice":
            return [source.sliced(arguments[0], shape, arguments[2])]
        case "Reshape" | "Flatten" | "Unflatten":
            view = source.reshaped(shape)
            return None if view is None else [view]
        case "Split":
            cuts, axis = [0, *arguments[0]], arguments[1] % len(source.shape)
            starts = [tuple(cut if a == axis else 0 for a in range(len(source.shape))) for cut in cuts]
            steps = (1,) * len(source.shape)
            return [
                source.sliced(start, out.shape, steps) for start, out in zip(starts, operation.outputs, strict=True)
            ]
    return None


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _dtype(dtype: Any) -> str:
    name = device.dtype_name(dtype)
    return "bool" if name == "bool_" else name
