"""From a checkpoint to a model ready to run: checked, fused, folded, evaluated, one module at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx

from ..config import PaliGemmaConfig
from ..demo import CHECKPOINT
from ..errors import InputError
from ..memory import residency
from ..memory.estimate import check_fits
from ..memory.size import parse_size
from ..ops import blas, device
from ..paligemma import PaliGemma, check_layers_at_once
from ..threads import background
from .adapters.base import compare_bases, find_base, lacks_tokenizer
from .adapters.merge import Adapter, AdapterPath, open_adapters
from .assemble import fill
from .footprint import needed_bytes
from .mask_decoder import open_mask_decoder
from .open import Checkpoint, locate, open_local, tokenizer_files
from .tensors import evaluate_read
from .wanted import has_tokenizer

if TYPE_CHECKING:
    from ..processor import Processor
    from ..regions.mask_vae import MaskDecoder

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}

Progress = Callable[[int, int], None]
"""Called with the number of modules loaded and how many there are."""


class Maker(Protocol):
    """What makes a model whose weights are placeholders."""

    def __call__(self, config: PaliGemmaConfig, *, dtype: mx.Dtype) -> PaliGemma:
        """As the constructor of PaliGemma."""
        ...


class Team(Protocol):
    """Processes that hold one model together (parallel/)."""

    parts: tuple[residency.HeldPart, ...]
    """What each of them holds of the model that was loaded last, this process first."""

    def load(
        self, path_or_repo: str | Path, options: LoadOptions, progress: Progress | None
    ) -> tuple[PaliGemma, Processor]:
        """As `load_with`: a model of which the other processes hold parts."""
        ...


@dataclass(frozen=True)
class LoadOptions:
    """How a checkpoint is loaded: everything but which one. Making one raises InputError for values that are wrong
    whatever the checkpoint is."""

    dtype: mx.Dtype | str | None = None
    """The dtype of activations, cache and float weights; None for bfloat16 on a GPU and float32 on the CPU."""
    adapter_path: AdapterPath = None
    """Folder or hub repository of a LoRA adapter (PEFT's or mlx-vlm's), or several, applied in order: merged into float
    weights, and computed beside quantized ones."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    tokenizer: str | Path | None = None
    """A file, folder or hub repository whose tokenizer replaces the checkpoint's. A big_vision archive has none, and
    many fine-tunes have none, so they need this."""
    max_memory: int | str | None = None
    """Bytes, or a size like "6GB", that loading and one answer may take. A model that needs more is refused before any
    weight is read."""
    memory: int | str | None = None
    """The same, and what is left of it is used for float32 copies in place of quantized weights, which the CPU backend
    multiplies some four times faster (memory.residency)."""
    keep_quantized: bool = False
    """Leave quantized weights as they are. Without this, max_memory or memory the CPU backend holds the weights of a
    small model (residency.SMALL_BYTES) in float32."""
    layers_at_once: int | None = None
    """See PaliGemma."""
    use_sliding_window: bool = False
    """See PaliGemma."""
    mask_decoder: str | Path | None = None
    """File of the decoder of <seg> codes, to use in place of the checkpoint's own or the published one."""
    team: Team | None = None
    """The processes that hold the model together; None if this one holds all of it."""

    def __post_init__(self) -> None:
        check_layers_at_once(self.layers_at_once)
        dtype = compute_dtype(self.dtype)
        for size in (self.max_memory, self.memory):
            if size is not None:
                parse_size(size)
        if self.memory is not None:
            residency.check_copies(dtype)

    @property
    def allowed_bytes(self) -> int | None:
        """What loading and one answer may take; None for no limit."""
        return min((parse_size(size) for size in (self.max_memory, self.memory) if size is not None), default=None)


def load(
    path_or_repo: str | Path = CHECKPOINT,
    *,
    dtype: mx.Dtype | str | None = None,
    adapter_path: AdapterPath = None,
    revision: str | None = None,
    tokenizer: str | Path | None = None,
    max_memory: int | str | None = None,
    memory: int | str | None = None,
    keep_quantized: bool = False,
    layers_at_once: int | None = None,
    use_sliding_window: bool = False,
    mask_decoder: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[PaliGemma, Processor]:
    """A model and its processor from a local folder, a hub repository or a big_vision .npz archive; without a path the
    bundled demo, which knows only coloured shapes and short words. For an adapter's folder or repository, from the base
    that it names, with the adapter on top.

    The options are those of LoadOptions. progress: called as modules are loaded. Raises InputError for anything wrong
    with the checkpoint or an option, and PgMlxError if the hub cannot be reached.
    """
    options = LoadOptions(
        dtype=dtype,
        adapter_path=adapter_path,
        revision=revision,
        tokenizer=tokenizer,
        max_memory=max_memory,
        memory=memory,
        keep_quantized=keep_quantized,
        layers_at_once=layers_at_once,
        use_sliding_window=use_sliding_window,
        mask_decoder=mask_decoder,
    )
    return load_with(path_or_repo, options, progress)


def load_model(
    folder: str | Path,
    *,
    dtype: mx.Dtype | str | None = None,
    adapter_path: AdapterPath = None,
    max_memory: int | str | None = None,
    memory: int | str | None = None,
    keep_quantized: bool = False,
    progress: Progress | None = None,
) -> PaliGemma:
    """The model of a local checkpoint folder or .npz archive, without a tokenizer, evaluated and ready.

    The options are those of LoadOptions. Peak memory is the model plus one layer's projections. Raises InputError.
    """
    options = LoadOptions(
        dtype=dtype, adapter_path=adapter_path, max_memory=max_memory, memory=memory, keep_quantized=keep_quantized
    )
    return load_model_with(folder, options, progress)


def load_with(
    path_or_repo: str | Path, options: LoadOptions, progress: Progress | None = None
) -> tuple[PaliGemma, Processor]:
    """As `load`, with the options as one object."""
    if options.team is not None:
        return options.team.load(path_or_repo, options, progress)
    found = find(path_or_repo, options)
    return with_processor(found, lambda: load_weights(found.checkpoint, options, progress))


@dataclass(frozen=True)
class Opened:
    """A checkpoint that is here, opened, with its adapters put onto it. No weight has been read."""

    checkpoint: Checkpoint
    mask_decoder: MaskDecoder | None
    """The one that the options name."""
    since: float
    """When opening began, by time.perf_counter."""


def find(path_or_repo: str | Path, options: LoadOptions, need_tokenizer: bool = True) -> Opened:
    """Download a checkpoint unless it is here, and open it. need_tokenizer: it must have one, or be given one. Raises
    InputError for anything wrong with it or with an option, and PgMlxError if the hub cannot be reached."""
    from ..regions.mask_vae import MaskDecoder

    # What is wrong with these is said before any weights are downloaded.
    adapters = open_adapters(options.adapter_path)
    if options.tokenizer is not None:
        tokenizer_files(options.tokenizer)
    needed = (
        need_tokenizer and options.tokenizer is None and not any(has_tokenizer(adapter.folder) for adapter in adapters)
    )
    named = find_base(path_or_repo, options.revision, needed)
    adapters = [*open_adapters(named.adapters), *adapters]
    given = MaskDecoder.load(options.mask_decoder) if options.mask_decoder else None
    path = locate(named.checkpoint, named.revision)
    begin = time.perf_counter()
    compare_bases(adapters, str(named.checkpoint))
    checkpoint = _open(path, options, adapters)
    if need_tokenizer and checkpoint.tokenizer is None:
        raise InputError(lacks_tokenizer(checkpoint.name))
    return Opened(checkpoint, given, begin)


def with_processor(found: Opened, read: Callable[[], PaliGemma]) -> tuple[PaliGemma, Processor]:
    """A model and its processor, which is made while `read` reads the weights. Raises InputError."""
    from ..processor import Processor

    checkpoint = found.checkpoint
    with background(checkpoint.read_tokenizer) as tokenizer:
        masks = found.mask_decoder or open_mask_decoder(checkpoint.mask_decoder)
        model = read()
    processor = Processor(tokenizer.result(), model.config.vision.image_size, checkpoint.resample, masks)
    rows = model.config.text.vocab_size
    if processor.tokenizer.vocab_size > rows:
        raise InputError(
            f"{checkpoint.name}: the tokenizer has {processor.tokenizer.vocab_size} pieces, "
            f"the embedding only {rows} rows"
        )
    model.load_s = time.perf_counter() - found.since
    return model, processor


def load_model_with(path: str | Path, options: LoadOptions, progress: Progress | None = None) -> PaliGemma:
    """As `load_model`, with the options as one object.

    `revision` and `mask_decoder` have no effect, and the file `tokenizer` must exist but is not read.
    """
    adapters, begin = open_adapters(options.adapter_path), time.perf_counter()
    compare_bases(adapters, str(path))
    model = load_weights(_open(Path(path), options, adapters), options, progress)
    model.load_s = time.perf_counter() - begin
    return model


def _open(path: Path, options: LoadOptions, adapters: Sequence[Adapter]) -> Checkpoint:
    checkpoint = open_local(path).with_tokens_of(adapters)
    if options.tokenizer is not None:
        checkpoint = checkpoint.with_tokenizer(options.tokenizer)
    return checkpoint.with_adapters(adapters) if adapters else checkpoint


def load_weights(
    checkpoint: Checkpoint, options: LoadOptions, progress: Progress | None = None, make: Maker = PaliGemma
) -> PaliGemma:
    """The model within the memory that it may take. make: see `build`. Raises InputError, and PgMlxError as `build`."""
    room, allowed = 0, options.allowed_bytes
    if allowed is not None:
        needed = needed_bytes(checkpoint, compute_dtype(options.dtype))
        check_fits(needed, allowed)
        room = allowed - needed
    model = build(checkpoint, options.dtype, progress, make)
    model.use_sliding_window, model.layers_at_once = options.use_sliding_window, options.layers_at_once
    if options.memory is not None:
        residency.dequantize_within(model, room)
    elif allowed is None and not options.keep_quantized:
        residency.dequantize_if_small(model)
    residency.keep_within(residency.held_bytes(model))
    return model


def build(
    checkpoint: Checkpoint,
    dtype: mx.Dtype | str | None = None,
    progress: Progress | None = None,
    make: Maker = PaliGemma,
) -> PaliGemma:
    """Assemble a model: every parameter read, brought to `dtype` and evaluated. make: what the model is made by, from
    the config and `dtype`. Raises InputError, and PgMlxError if a file becomes shorter while it is read."""
    device.warn_if_slow()
    dtype, config, source = compute_dtype(dtype), checkpoint.config, checkpoint.source
    model = make(config, dtype=dtype)
    for done, spec in enumerate(checkpoint.specs):
        if progress:
            progress(done, len(checkpoint.specs))
        evaluate_read(spec.target, fill(model, spec, source, config, dtype))
    if progress:
        progress(len(checkpoint.specs), len(checkpoint.specs))
    model.eval()
    return model


def compute_dtype(dtype: mx.Dtype | str | None) -> mx.Dtype:
    """The dtype that a name means, and for None the machine's default. Products in float32 will keep all their bits.
    Raises InputError for an unknown name."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    named = DTYPES[dtype] if isinstance(dtype, str) else dtype
    chosen = device.default_dtype() if named is None else named
    if chosen == mx.float32:
        blas.full_float32()
    return chosen
