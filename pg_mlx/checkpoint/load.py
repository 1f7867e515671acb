"""From a checkpoint to a model ready to run: checked, fused, folded, evaluated, one module at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import mlx.core as mx
import mlx.nn as nn

from ..backend import default_dtype, warn_if_slow
from ..config import PaliGemmaConfig
from ..errors import InputError
from ..linear import Embedding, Linear, Parallel
from ..paligemma import PaliGemma
from ..quantization import Quantization
from . import hub
from .check import check, packing
from .layouts import Slot, slots, tell
from .safetensors import SafetensorsFolder, read_json

if TYPE_CHECKING:
    from ..processor import Processor

_Matrix = tuple[Quantization | None, dict[str, mx.array]]
"""How a stored matrix is packed (None: float), and its arrays by suffix: weight, scales, biases, bias."""

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}

Progress = Callable[[int, int], None]
"""Called with the number of modules loaded and how many there are."""


class Source(Protocol):
    """A checkpoint under canonical names, whatever its files look like."""

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> mx.array: ...


def load(
    path_or_repo: str | Path,
    *,
    dtype: mx.Dtype | str | None = None,
    revision: str | None = None,
    use_sliding_window: bool = False,
    progress: Progress | None = None,
) -> tuple[PaliGemma, Processor]:
    """A model and its processor from a local folder or a hub repository.

    dtype: of activations, cache and float weights; bfloat16 on a GPU and float32 on the CPU if not given.
    use_sliding_window: see PaliGemma. Raises InputError for anything wrong with the checkpoint.
    """
    from ..processor import Processor

    folder = hub.resolve(path_or_repo, revision)
    model = load_model(folder, dtype=dtype, progress=progress)
    model.use_sliding_window = use_sliding_window
    start = time.perf_counter()
    processor = Processor.from_folder(folder, model.config.vision.image_size)
    rows = model.config.text.vocab_size
    if processor.tokenizer.vocab_size > rows:
        raise InputError(
            f"{folder}: the tokenizer has {processor.tokenizer.vocab_size} pieces, the embedding only {rows} rows"
        )
    model.load_s += time.perf_counter() - start
    return model, processor


def load_model(
    folder: str | Path, *, dtype: mx.Dtype | str | None = None, progress: Progress | None = None
) -> PaliGemma:
    """The model of a local checkpoint folder, without a tokenizer, evaluated and ready.

    Peak memory is the model plus one layer's projections. Raises InputError.
    """
    start = time.perf_counter()
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json, so it is not a checkpoint folder")
    model = build(SafetensorsFolder(folder), read_json(folder / "config.json"), dtype, progress)
    model.load_s = time.perf_counter() - start
    return model


def build(
    source: Source,
    raw_config: Mapping[str, Any],
    dtype: mx.Dtype | str | None = None,
    progress: Progress | None = None,
) -> PaliGemma:
    """Assemble a model from canonical tensors and a parsed config.json. Raises InputError."""
    warn_if_slow()
    dtype = _dtype(dtype)
    config = PaliGemmaConfig.from_dict(raw_config, tell(source.shapes))
    model = PaliGemma(config)
    model.language_model.dtype = dtype
    plan = list(slots(config))
    check(plan, source.shapes, config)
    for done, slot in enumerate(plan):
        if progress:
            progress(done, len(plan))
        mx.eval(_fill(model, slot, source, config, dtype))
    if progress:
        progress(len(plan), len(plan))
    model.eval()
    return model


def _dtype(dtype: mx.Dtype | str | None) -> mx.Dtype:
    if dtype is None:
        return default_dtype()
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return dtype


def _fill(model: PaliGemma, slot: Slot, source: Source, config: PaliGemmaConfig, dtype: mx.Dtype) -> Any:
    """Put a slot's tensors where they belong; returns them, a tree of arrays not yet evaluated."""
    parent_path, _, name = slot.target.rpartition(".")
    parent = _module(model, parent_path)
    first = slot.sources[0]
    if slot.kind == "array":
        table = Embedding(slot.rows[0], slot.columns)
        _fill_matrix(table, [_read_matrix(slot, first, source, config, dtype)])
        parent[name] = table.unpacked(dtype)
        return parent[name]
    module = parent[name]
    if slot.kind == "rms_norm":  # Gemma multiplies by one plus the stored weight
        module.weight = 1 + _read_float(source, f"{first}.weight", mx.float32)
    elif slot.kind == "layer_norm":
        module.weight = _read_float(source, f"{first}.weight", mx.float32)
        module.bias = _read_float(source, f"{first}.bias", mx.float32)
    elif slot.kind == "patches":
        module.weight = _read_float(source, f"{first}.weight", dtype).reshape(module.num_rows, -1)
        module.bias = _read_float(source, f"{first}.bias", dtype)
    else:
        parts = [_read_matrix(slot, part, source, config, dtype) for part in slot.sources]
        if len({quantization for quantization, _ in parts}) == 1:
            _fill_matrix(module, parts)
        else:  # packed differently, so they cannot be one matrix: one beside the other
            module = Parallel([Linear(slot.columns, rows, slot.bias) for rows in slot.rows])
            parent[name] = module
            for linear, part in zip(module.parts, parts, strict=True):
                _fill_matrix(linear, [part])
    return module.parameters()


def _read_float(source: Source, name: str, dtype: mx.Dtype) -> mx.array:
    array = source.read(name)
    if not mx.issubdtype(array.dtype, mx.floating):
        raise InputError(f"{name} holds {array.dtype}, not floating-point numbers")
    return array.astype(dtype)


def _read_matrix(slot: Slot, part: str, source: Source, config: PaliGemmaConfig, dtype: mx.Dtype) -> _Matrix:
    bias = {"bias": _read_float(source, f"{part}.bias", dtype)} if slot.bias else {}
    if f"{part}.scales" not in source.shapes:
        return None, {"weight": _read_float(source, f"{part}.weight", dtype), **bias}
    quantization = packing(source.shapes, part, slot.columns, config)
    weight = source.read(f"{part}.weight")
    if weight.dtype != mx.uint32:
        raise InputError(f"{part}.weight has scales but holds {weight.dtype}, not packed uint32")
    arrays = {"weight": weight, **bias}
    if quantization.mode == "affine":
        arrays |= {name: _read_float(source, f"{part}.{name}", dtype) for name in ("scales", "biases")}
    else:
        arrays["scales"] = source.read(f"{part}.scales")
        if arrays["scales"].dtype != mx.uint8:
            raise InputError(f"{part}.scales holds {arrays['scales'].dtype}, but {quantization.mode} has uint8")
    return quantization, arrays


def _fill_matrix(module: Linear | Embedding, parts: list[_Matrix]) -> None:
    """Stack parts that are packed alike, row under row."""
    module.quantization = parts[0][0]
    for suffix in parts[0][1]:
        arrays = [arrays[suffix] for _, arrays in parts]
        module[suffix] = arrays[0] if len(arrays) == 1 else mx.concatenate(arrays, axis=0)


def _module(root: nn.Module, path: str) -> Any:
    node: Any = root
    for name in path.split("."):
        node = node[int(name)] if name.isdigit() else node[name]
    return node
