"""From a checkpoint to a model ready to run: checked, fused, folded, evaluated, one module at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..backend import default_dtype, warn_if_slow
from ..config import PaliGemmaConfig
from ..errors import InputError
from ..paligemma import PaliGemma
from ..threads import start
from . import hub, mask_weights
from .adapters import AdaptedSource, Adapter, AdapterPath, open_adapters
from .assemble import Source, fill
from .check import check
from .layouts import slots, tell
from .safetensors import SafetensorsFolder, read_json

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
    use_sliding_window: bool = False,
    mask_decoder: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[PaliGemma, Processor]:
    """A model and its processor from a local folder or a hub repository.

    dtype: of activations, cache and float weights; bfloat16 on a GPU and float32 on the CPU if not given.
    adapter_path: see load_model. use_sliding_window: see PaliGemma. mask_decoder: file of the decoder of <seg> codes,
    if neither the checkpoint's own nor the published one is meant. Raises InputError for anything wrong with these.
    """
    from ..processor import Processor, Tokenizer, read_resample
    from ..regions.masks import MaskDecoder

    # What is wrong with these is said before anything is downloaded.
    adapters = open_adapters(adapter_path)
    given = MaskDecoder.load(mask_decoder) if mask_decoder else None
    folder = hub.resolve(path_or_repo, revision)
    tokenizer = start(lambda: Tokenizer.from_folder(folder))  # while the weights are read
    masks = given or mask_weights.mask_decoder(folder)
    model = _load_model(folder, dtype, adapters, progress)
    model.use_sliding_window = use_sliding_window
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
    progress: Progress | None = None,
) -> PaliGemma:
    """The model of a local checkpoint folder, without a tokenizer, evaluated and ready.

    adapter_path: one folder of a LoRA adapter (PEFT's or mlx-vlm's), or several, applied in order: merged into float
    weights, and computed beside packed ones. Peak memory is the model plus one layer's projections. Raises InputError.
    """
    return _load_model(folder, dtype, open_adapters(adapter_path), progress)


def _load_model(
    folder: str | Path, dtype: mx.Dtype | str | None, adapters: Sequence[Adapter], progress: Progress | None
) -> PaliGemma:
    start = time.perf_counter()
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json, so it is not a checkpoint folder")
    model = build(SafetensorsFolder(folder), read_json(folder / "config.json"), dtype, progress, adapters)
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
    warn_if_slow()
    dtype = compute_dtype(dtype)
    config = PaliGemmaConfig.from_dict(raw_config, tell(source.shapes))
    model = PaliGemma(config)
    model.language_model.dtype = dtype
    plan = list(slots(config))
    check(plan, source.shapes, config)
    if adapters:
        source = AdaptedSource(source, adapters, config)
    for done, slot in enumerate(plan):
        if progress:
            progress(done, len(plan))
        mx.eval(fill(model, slot, source, config, dtype))
    if progress:
        progress(len(plan), len(plan))
    model.eval()
    return model


def compute_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype:
    if dtype is None:
        return default_dtype()
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    return dtype
