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


# --- checking ---------------------------------------------------------------------------------------


def check(plan: list[Slot], shapes: Mapping[str, tuple[int, ...]], config: PaliGemmaConfig) -> None:
    """Raises one InputError that lists every missing, surplus and misshapen tensor."""
    missing, misshapen, expected = [], [], set[str]()
    for slot in plan:
        for name, shape in slot.expected():
            expected.add(name)
            module = name.removesuffix(".weight")
            if f"{module}.scales" in shapes and name in shapes and slot.kind in ("linear", "embedding"):
                quantization = packing(shapes, module, slot.columns, config)
                expected |= {f"{module}.scales"} | ({f"{module}.biases"} if quantization.mode == "affine" else set())
                shape = (shape[0], slot.columns * quantization.bits // 32)
            if name not in shapes:
                missing.append(name)
            elif shapes[name] != shape:
                misshapen.append(f"{name} is {list(shapes[name])}, expected {list(shape)}")
    if config.tie_word_embeddings:  # a stored copy of the embedding, or stale: the embedding wins
        expected |= {name for name in shapes if name.startswith("language_model.lm_head.")}
    surplus = sorted(set(shapes) - expected)
    problems = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
        for what, names in (("missing", missing), ("misshapen", misshapen), ("surplus", surplus))
        if names
    ]
    if problems:
        raise InputError(f"the tensors do not fit config.json; {'; '.join(problems)}")


def packing(shapes: Mapping[str, tuple[int, ...]], module: str, columns: int, config: PaliGemmaConfig) -> Quantization:
    """How a quantized module is packed, told by its tensors and checked against config.json.

    Raises InputError if no mode packs like that, or config.json says otherwise.
    """
    words, groups = shapes[f"{module}.weight"][-1], shapes[f"{module}.scales"][-1]
    try:
        found = Quantization.recognise(words, groups, columns, has_biases=f"{module}.biases" in shapes)
    except InputError as error:
        raise InputError(f"{module}: {error}") from None
    entry = config.quantization.get(module)
    entry = entry if isinstance(entry, Mapping) else config.quantization
    for key in ("bits", "group_size", "mode"):
        if entry.get(key, getattr(found, key)) != getattr(found, key):
            raise InputError(
                f"config.json says {key} of {module} is {entry[key]}, but the tensors say {getattr(found, key)}"
            )
    return found


# --- filling ----------------------------------------------------------------------------------------


def _fill(model: PaliGemma, slot: Slot, source: Source, config: PaliGemmaConfig, dtype: mx.Dtype) -> Any:
    """Put a slot's tensors where they belong; returns them, a tree of arrays not yet evaluated."""
    parent_path, _, name = slot.target.rpartition(".")
    parent = _module(model, parent_path)
    first = slot.sources[0]
    if slot.kind == "array":
        parent[name] = source.read(f"{first}.weight").astype(dtype)
        return parent[name]
    module = parent[name]
    if slot.kind == "rms_norm":  # Gemma multiplies by one plus the stored weight; bfloat16 would lose bits of the sum
        module.weight = (1 + source.read(f"{first}.weight").astype(mx.float32)).astype(dtype)
    elif slot.kind == "layer_norm":
        module.weight = source.read(f"{first}.weight").astype(dtype)
        module.bias = source.read(f"{first}.bias").astype(dtype)
    elif slot.kind == "patches":
        module.weight = source.read(f"{first}.weight").reshape(module.num_rows, -1).astype(dtype)
        module.bias = source.read(f"{first}.bias").astype(dtype)
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


def _read_matrix(slot: Slot, part: str, source: Source, config: PaliGemmaConfig, dtype: mx.Dtype) -> _Matrix:
    quantization: Quantization | None = None
    suffixes = ["weight"]
    if f"{part}.scales" in source.shapes:
        quantization = packing(source.shapes, part, slot.columns, config)
        suffixes += ["scales", "biases"] if quantization.mode == "affine" else ["scales"]
    arrays = {suffix: source.read(f"{part}.{suffix}") for suffix in suffixes + ["bias"] * slot.bias}
    packed = (mx.uint32, mx.uint8)  # weights, and the scales of the floating modes
    return quantization, {
        suffix: array if array.dtype in packed else array.astype(dtype) for suffix, array in arrays.items()
    }


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
