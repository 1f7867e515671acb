"""From a checkpoint to a model ready to run: checked, fused, folded, evaluated, one module at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..config import PaliGemmaConfig
from ..errors import InputError
from ..files.json import read_json
from ..memory.estimate import check_fits
from ..memory.residency import check_copies, dequantize_if_small, dequantize_within, held_bytes, keep_within
from ..memory.size import parse_size
from ..ops import device
from ..paligemma import PaliGemma, check_layers_at_once
from ..threads import background
from . import hub
from .adapters.merge import AdaptedSource, Adapter, AdapterPath, open_adapters
from .assemble import fill
from .check import check
from .footprint import needed_bytes
from .layouts import infer_dimensions, weight_specs
from .mask_decoder import open_mask_decoder
from .tensors import SafetensorsFolder, Source

if TYPE_CHECKING:
    from ..processor import Processor

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}

Progress = Callable[[int, int], None]
"""Called with the number of modules loaded and how many there are."""


def load(
    path_or_repo: str | Path,
    *,
    dtype: mx.Dtype | str | None = None,
    adapter_path: AdapterPath = None,
    revision: str | None = None,
    max_memory: int | str | None = None,
    memory: int | str | None = None,
    layers_at_once: int | None = None,
    use_sliding_window: bool = False,
    mask_decoder: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[PaliGemma, Processor]:
    """A model and its processor from a local folder or a hub repository.

    dtype: of activations, cache and float weights; bfloat16 on a GPU and float32 on the CPU if not given.
    adapter_path, max_memory, memory: see load_model. layers_at_once, use_sliding_window: see PaliGemma. mask_decoder:
    file of the decoder of <seg> codes, if neither the checkpoint's own nor the published one is meant. Raises
    InputError for anything wrong with these.
    """
    from ..processor import Processor, Tokenizer, read_resample
    from ..regions.mask_vae import MaskDecoder

    # What is wrong with these is said before anything is downloaded.
    adapters, budget = open_adapters(adapter_path), Budget.of(max_memory, memory, dtype)
    check_layers_at_once(layers_at_once)
    given = MaskDecoder.load(mask_decoder) if mask_decoder else None
    folder = hub.resolve(path_or_repo, revision)
    with background(lambda: Tokenizer.from_folder(folder)) as tokenizer:  # while the weights are read
        masks = given or open_mask_decoder(folder)
        model = _load_model(folder, dtype, adapters, progress, budget)
        model.use_sliding_window, model.layers_at_once = use_sliding_window, layers_at_once
        begin = time.perf_counter()
    resample = read_resample(folder / "preprocessor_config.json")
    processor = Processor(tokenizer.result(), model.config.vision.image_size, resample, masks)
    rows = model.config.text.vocab_size
    if processor.tokenizer.vocab_size > rows:
        raise InputError(
            f"{folder}: the tokenizer has {processor.tokenizer.vocab_size} pieces, the embedding only {rows} rows"
        )
    model.load_s += time.perf_counter() - begin
    return model, processor


def load_model(
    folder: str | Path,
    *,
    dtype: mx.Dtype | str | None = None,
    adapter_path: AdapterPath = None,
    max_memory: int | str | None = None,
    memory: int | str | None = None,
    progress: Progress | None = None,
) -> PaliGemma:
    """The model of a local checkpoint folder, without a tokenizer, evaluated and ready.

    adapter_path: one folder of a LoRA adapter (PEFT's or mlx-vlm's), or several, applied in order: merged into float
    weights, and computed beside packed ones. Peak memory is the model plus one layer's projections.
    max_memory: bytes, or a size like "6GB", that loading and one answer may take; a model that needs more is refused
    before any weight is read. memory: the same, and what is left of it goes to float32 copies in place of packed
    weights, which the CPU backend multiplies some four times faster (memory.dequantize_within). Without either, small
    models are float32 there as a whole (memory.SMALL_BYTES). Raises InputError.
    """
    budget = Budget.of(max_memory, memory, dtype)
    return _load_model(folder, dtype, open_adapters(adapter_path), progress, budget)


@dataclass(frozen=True)
class Budget:
    """What memory a model may take."""

    allowed: int | None
    """Bytes; None for as many as it takes."""
    copies: bool
    """Whether to use all of it."""

    @classmethod
    def of(cls, max_memory: int | str | None, memory: int | str | None, dtype: mx.Dtype | str | None) -> Budget:
        """Raises InputError."""
        sizes = [parse_size(size) for size in (max_memory, memory) if size is not None]
        if memory is not None:
            check_copies(compute_dtype(dtype))
        return cls(min(sizes, default=None), memory is not None)


def _load_model(
    folder: str | Path,
    dtype: mx.Dtype | str | None,
    adapters: Sequence[Adapter],
    progress: Progress | None,
    budget: Budget,
) -> PaliGemma:
    start = time.perf_counter()
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json, so it is not a checkpoint folder")
    source, raw_config = SafetensorsFolder(folder), read_json(folder / "config.json")
    room = 0
    if budget.allowed is not None:
        needed = needed_bytes(source, raw_config, compute_dtype(dtype))
        check_fits(needed, budget.allowed)
        room = budget.allowed - needed
    model = build(source, raw_config, dtype, progress, adapters)
    if budget.copies:
        dequantize_within(model, room)
    elif budget.allowed is None:
        dequantize_if_small(model)
    keep_within(held_bytes(model))
    model.load_s = time.perf_counter() - start
    return model


def build(
    source: Source,
    raw_config: Mapping[str, Any],
    dtype: mx.Dtype | str | None = None,
    progress: Progress | None = None,
    adapters: Sequence[Adapter] = (),
) -> PaliGemma:
    """Assemble a model from canonical tensors, a parsed config.json and adapters. Raises InputError."""
    device.warn_if_slow()
    dtype = compute_dtype(dtype)
    config = PaliGemmaConfig.from_dict(raw_config, infer_dimensions(source.shapes))
    model = PaliGemma(config, dtype=dtype)
    plan = list(weight_specs(config))
    check(plan, source.shapes, config)
    if adapters:
        source = AdaptedSource(source, adapters, config)
    for done, spec in enumerate(plan):
        if progress:
            progress(done, len(plan))
        mx.eval(fill(model, spec, source, config, dtype))
    if progress:
        progress(len(plan), len(plan))
    model.eval()
    return model


def compute_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype:
    if dtype is None:
        return device.default_dtype()
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return dtype
