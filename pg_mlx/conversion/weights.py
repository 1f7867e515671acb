"""The weights of a conversion: each tensor read, packed or unpacked slice by slice, and written before the next."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import mlx.core as mx

from ..checkpoint.tensors import Source, evaluate_read
from ..errors import InputError
from ..files.shards import ShardWriter
from ..quantization import Quantization, pack_fitted, pad_columns, pad_rows
from .plan import Module, Plan

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes written so far, and the bytes there will be."""

CHUNK_VALUES = 2 << 20
"""Values of a matrix that are packed or unpacked at once; both work row by row, so slices of rows change nothing."""


def working_bytes() -> int:
    """Memory for a slice: on the CPU MLX takes up to 77 bytes a value to pack (nvfp4), 14 to unpack."""
    return 96 * CHUNK_VALUES


class Packer:
    """Chooses codes, scales and biases. This one takes the nearest codes, as mx.quantize does ("rtn").

    dtype: of affine scales and biases.
    """

    def __init__(self, dtype: mx.Dtype):
        self.dtype = dtype

    def ready(self, module: Module) -> dict[str, mx.array] | None:
        """The arrays of a module that is packed already, so that its weight need not be read."""
        return None

    def close(self) -> None:
        """After all modules have been written."""

    def pack(self, name: str, weight: mx.array, quantization: Quantization) -> dict[str, mx.array]:
        """Some outputs of the weight `name`, [outputs, columns], as Quantization.pack gives them. Scales take the dtype
        of what is packed, so it is brought to `dtype` before."""
        return quantization.pack(_cast(name, weight, self.dtype))


class FittedPacker(Packer):
    """Scales and biases are fitted ("mse"); modules in `calibrated` are packed already ("gptq").

    calibrated: names and arrays, in the order of the plan; names: all of them. Each is asked for when it is written,
    so that no block is in memory while the embedding is read and packed.
    """

    def __init__(
        self,
        dtype: mx.Dtype,
        calibrated: Iterable[tuple[str, dict[str, mx.array]]] = (),
        names: Collection[str] = (),
    ):
        super().__init__(dtype)
        self._calibrated, self._names = iter(calibrated), names

    def ready(self, module: Module) -> dict[str, mx.array] | None:
        """The arrays of a calibrated module."""
        if module.name not in self._names:
            return None
        name, arrays = next(self._calibrated)
        assert name == module.name, f"{name} is packed where {module.name} is written"
        mx.eval(arrays)
        return arrays

    def close(self) -> None:
        """Every calibrated module must have been written."""
        assert next(self._calibrated, None) is None

    def pack(self, name: str, weight: mx.array, quantization: Quantization) -> dict[str, mx.array]:
        """As Packer.pack. The fit starts from the weights as the source has them."""
        _cast(name, weight, self.dtype)  # too large numbers are refused
        return pack_fitted(weight, quantization, self.dtype)


def write_weights(
    plan: Plan, source: Source, writer: ShardWriter, packer: Packer, report: Progress, total: int
) -> None:
    """Everything that is planned, and the writer is closed. total: the bytes there will be."""
    for module in plan.modules:
        report(module.name, writer.total_bytes, total)
        _write_module(module, source, writer, packer)
    packer.close()
    report("", total, total)
    writer.close()


def _write_module(module: Module, source: Source, writer: ShardWriter, packer: Packer) -> None:
    name, dtype = module.name, packer.dtype
    if arrays := packer.ready(module):
        for part, array in arrays.items():
            writer.add(f"{name}.{part}", array)
    elif module.stored and module.stored == module.target and module.padded[1] == module.columns:
        for part in module.stored.parts:
            array = pad_rows(_read(source, f"{name}.{part}"), module.padded[0])  # zeros packed are zeros
            floats = mx.issubdtype(array.dtype, mx.floating)
            writer.add(f"{name}.{part}", _cast(f"{name}.{part}", array, dtype) if floats else array)
    elif module.target:
        _write_packed(module, module.target, source, writer, packer)
    else:
        is_matrix = module.columns and module.kind != "patches"
        shape = module.padded if is_matrix else source.shapes[f"{name}.weight"]
        chunks = (_cast(f"{name}.weight", rows, dtype) for rows in _slices(module, source))
        writer.add_chunks(f"{name}.weight", dtype, shape, chunks)
    if module.bias:
        bias = pad_rows(_read(source, f"{name}.bias"), module.padded[0])
        writer.add(f"{name}.bias", _cast(f"{name}.bias", bias, dtype))


def _read(source: Source, name: str) -> mx.array:
    """The tensor, evaluated, so that what fails here is its file."""
    array = source.read(name)
    evaluate_read(name, array)
    if mx.issubdtype(array.dtype, mx.floating) and not _is_finite(array):
        raise InputError(
            f"{name} holds NaN or infinite numbers: the training that made it has diverged, or its file is damaged"
        )
    return array


def _is_finite(array: mx.array) -> bool:
    """Whether all numbers are finite, looked at in slices, as they are packed."""
    step = max(1, CHUNK_VALUES * array.shape[0] // max(1, array.size)) if array.ndim else 1
    slices = (array[start : start + step] for start in range(0, array.shape[0], step)) if array.ndim else (array,)
    return all(mx.isfinite(part).all().item() for part in slices)


def _cast(name: str, array: mx.array, dtype: mx.Dtype) -> mx.array:
    """A tensor in the dtype that is written. Raises InputError if a number is too large for it."""
    written = array.astype(dtype)
    if dtype == mx.float16 and array.dtype != dtype and not mx.isfinite(written).all().item():
        raise InputError(f"{name} holds numbers that are too large for float16; use --dtype bfloat16")
    return written


def _write_packed(
    module: Module, quantization: Quantization, source: Source, writer: ShardWriter, packer: Packer
) -> None:
    """Pack and write slice by slice."""
    pieces: dict[str, list[mx.array]] = {}
    for rows in _slices(module, source):
        for part, array in packer.pack(f"{module.name}.weight", rows, quantization).items():
            mx.eval(array)
            pieces.setdefault(part, []).append(array)
    for part, arrays in pieces.items():
        shape = (module.padded[0], arrays[0].shape[1])
        writer.add_chunks(f"{module.name}.{part}", arrays[0].dtype, shape, arrays)


def _slices(module: Module, source: Source) -> Iterator[mx.array]:
    """The weight as floats, unpacked and padded where need be, some rows at a time."""
    parts = module.stored.parts if module.stored else ("weight",)
    arrays = {part: _read(source, f"{module.name}.{part}") for part in parts}
    if module.stored is None and not mx.issubdtype(arrays["weight"].dtype, mx.floating):
        raise InputError(f"{module.name}.weight holds {arrays['weight'].dtype}, not floating-point numbers")
    step = max(1, CHUNK_VALUES // max(1, module.columns))
    for start in range(0, module.rows, step):
        rows = {part: array[start : start + step] for part, array in arrays.items()}
        weight = module.stored.unpack(rows) if module.stored else rows["weight"]
        if start + step >= module.rows:
            weight = pad_rows(weight, module.padded[0] - start)
        if module.padded[1] != module.columns:
            weight = pad_columns(weight, module.padded[1])
        yield weight
