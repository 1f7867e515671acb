"""read -> merge -> quantize -> write -> compare: any PaliGemma to a folder that MLX programs load.

One tensor is in memory at a time, and it is gone before the next is read; the shard it belongs to grows on disk. So the
peak is about the largest tensor (the embedding) and its packed copy, whatever the size of the model.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from ..checkpoint.layouts import infer_dimensions
from ..checkpoint.load import DTYPES
from ..checkpoint.mask_decoder import FILE_NAME
from ..checkpoint.open import Opened, open_source
from ..config import PaliGemmaConfig
from ..errors import InputError, PgMlxError
from ..files.arrays import write_arrays
from ..files.folder import whole_folder
from ..files.shards import ShardWriter
from ..ops.device import dtype_name
from ..processor import Tokenizer
from ..quantization import RECIPES, Recipe, uniform
from ..regions.mask_vae import read_masks
from . import side_files
from .plan import Plan, make_plan
from .report import Report, model_card
from .tokenizer_json import write_tokenizer_json
from .weights import Progress, working_bytes, write_weights

if TYPE_CHECKING:
    from .quality import Quality


@dataclass(frozen=True)
class Conversion:
    """A conversion ready to run: everything that can be wrong without reading weights has been looked at."""

    opened: Opened
    plan: Plan
    recipe: Recipe | None
    dtype: mx.Dtype
    """Of float tensors and affine scales."""
    masks: dict[str, mx.array]
    """Weights of the decoder of <seg> codes, and of its encoder where the file had it; empty if there is none."""

    def expected_bytes(self) -> int:
        return sum(module.bytes_after(self.dtype.size) for module in self.plan.modules)

    def expected_peak(self) -> int:
        """The largest tensor as it is read, its packed form, and the work on a slice."""
        before, after = self.opened.dtype.size, self.dtype.size
        both = (m.bytes_before(before) + (m.bytes_after(after) if m.target else 0) for m in self.plan.modules)
        return max(both) + working_bytes()

    def header_bytes(self) -> int:
        """Room for the head of a shard that held every tensor."""
        return 4096 + sum(4 * (len(module.name) + 120) for module in self.plan.modules)


def choose_recipe(
    quantize: bool,
    q_bits: int | None,
    q_group_size: int | None,
    q_mode: str | None,
    q_recipe: str | None,
    q_overrides: Mapping[str, str] | None,
) -> Recipe | None:
    """The recipe that a set of options means: none, a named one, or one packing for all. Raises InputError."""
    by_numbers = q_bits is not None or q_group_size is not None or q_mode is not None
    if by_numbers and q_recipe:
        raise InputError("a recipe and bits, group size or mode exclude each other")
    if not (quantize or by_numbers or q_recipe or q_overrides):
        return None
    if q_recipe and q_recipe not in RECIPES:
        raise InputError(f"no recipe {q_recipe!r}; there are {', '.join(RECIPES)}")
    recipe = uniform(q_bits, q_group_size, q_mode) if by_numbers else RECIPES[q_recipe or "balanced"]
    return recipe.with_overrides(q_overrides or {})


def prepare(
    source: str | Path,
    *,
    recipe: Recipe | None = None,
    dequantize: bool = False,
    dtype: str | None = None,
    adapter_path: str | Path | Sequence[str | Path] | None = None,
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    need_tokenizer: bool = True,
    mask_decoder: str | Path | None = None,
    headers_only: bool = False,
) -> Conversion:
    """Open a source and decide what to write. Raises InputError for everything that shapes and small files can tell.

    headers_only: of a hub repository download no weights (and no tokenizer) for it. Such a job cannot be run.
    mask_decoder: a file whose network takes the place of the source's own.
    """
    if recipe and dequantize:
        raise InputError("quantizing and dequantizing exclude each other")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    adapters = [adapter_path] if isinstance(adapter_path, (str, Path)) else list(adapter_path or ())
    opened = open_source(source, revision, Path(tokenizer) if tokenizer else None, adapters, headers_only)
    if adapters and opened.config.get("quantization") and not (recipe or dequantize):
        raise InputError(
            f"{opened.name} is quantized; merging an adapter needs -q (pack it again) or -d (leave it float)"
        )
    reader = opened.open()
    config = PaliGemmaConfig.from_dict(opened.config, infer_dimensions(reader.shapes))
    if need_tokenizer and (tokenizer or not opened.headers_only):
        _check_tokenizer(opened, config.text.vocab_size)
    stored = mx.bfloat16 if recipe and opened.dtype == mx.float32 else opened.dtype
    masks = mask_decoder or opened.mask_decoder
    return Conversion(
        opened,
        make_plan(reader, config, recipe, dequantize),
        recipe,
        DTYPES[dtype] if dtype else stored,
        read_masks(masks) if masks else {},
    )


def _check_tokenizer(opened: Opened, rows: int) -> None:
    """Without one that can be read, and whose ids all have a row in the embedding, the result could not answer."""
    files = [opened.side_files[name] for name in ("tokenizer.model", "tokenizer.json") if name in opened.side_files]
    if not files:
        raise InputError(
            f"{opened.name} has no tokenizer; give one with --tokenizer FILE|FOLDER, or convert with --no-tokenizer"
        )
    pieces = Tokenizer.from_file(files[0]).vocab_size
    if pieces > rows:
        raise InputError(f"{files[0]} has {pieces} pieces, but the embedding only {rows} rows")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    quantize: bool = False,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str | None = None,
    q_recipe: str | None = None,
    q_overrides: Mapping[str, str] | None = None,
    dequantize: bool = False,
    dtype: str | None = None,
    adapter_path: str | Path | Sequence[str | Path] | None = None,
    tokenizer: str | Path | None = None,
    need_tokenizer: bool = True,
    mask_decoder: str | Path | None = None,
    revision: str | None = None,
    force: bool = False,
    check: bool = True,
    calibration: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Convert `source` (folder, hub repository or big_vision .npz) into the folder `target`.

    Without any q_ option or `quantize` what is float stays float. dtype: of float tensors and scales; if not given, as
    stored, except that float32 becomes bfloat16 in a quantized folder. check: compare the result with the source
    (see quality.py) on the pictures in `calibration`, or on a few drawn ones. mask_decoder: a file of the decoder of
    <seg> codes (vae-oid.npz) to put into the folder; one that the source's folder has comes along by itself.
    Raises InputError for wrong options or sources, PgMlxError if the disk is full; the target then is as it was before.
    """
    recipe = choose_recipe(quantize, q_bits, q_group_size, q_mode, q_recipe, q_overrides)
    job = prepare(
        source,
        recipe=recipe,
        dequantize=dequantize,
        dtype=dtype,
        adapter_path=adapter_path,
        tokenizer=tokenizer,
        revision=revision,
        need_tokenizer=need_tokenizer,
        mask_decoder=mask_decoder,
    )
    return run(job, Path(target).expanduser(), force=force, check=check, calibration=calibration, progress=progress)


def run(
    job: Conversion,
    target: Path,
    *,
    force: bool = False,
    check: bool = True,
    calibration: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write a prepared conversion. Raises as `convert`."""
    start = time.perf_counter()
    mx.reset_peak_memory()
    report = progress or (lambda what, done, total: None)
    try:
        with whole_folder(target, force) as folder:
            _require_space(job, folder)
            writer = ShardWriter(folder, header_bytes=job.header_bytes())
            write_weights(job.plan, job.opened.open(), writer, job.dtype, report, job.expected_bytes())
            _write_side_files(job, folder)
            quality = _compare(job, folder, calibration, report) if check else None
            written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            result = Report(
                target=target,
                bytes_before=job.opened.num_bytes,
                bytes_after=written,
                bits_per_weight=written * 8 / sum(module.parameters for module in job.plan.modules),
                left_float=job.plan.left_float,
                seconds=time.perf_counter() - start,
                peak_memory_bytes=mx.get_peak_memory(),
                quality=quality,
            )
            if quality:
                (folder / "quality.json").write_text(json.dumps(asdict(quality), indent=1) + "\n")
            (folder / "README.md").write_text(model_card(job.opened.name, job.recipe, result))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PgMlxError(f"no space left to write {target}; nothing was changed") from error
        where = f" ({error.filename})" if error.filename else ""
        raise PgMlxError(f"cannot write {target}: {error.strerror or error}{where}") from error
    return result


def _require_space(job: Conversion, folder: Path) -> None:
    needed, free = job.expected_bytes(), shutil.disk_usage(folder).free
    if needed > free:
        raise PgMlxError(f"the result needs {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free")


def _compare(job: Conversion, folder: Path, calibration: str | Path | None, report: Progress) -> Quality | None:
    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        return None
    from .quality import compare, default_samples

    samples = default_samples(Path(calibration) if calibration else None)
    size = job.expected_bytes()

    def progress(done: int, total: int) -> None:
        report(f"comparing with the source, {done} of {total}", size, size)

    return compare(job.opened.open(), job.opened.config, folder, samples=samples, progress=progress)


def _write_side_files(job: Conversion, folder: Path) -> None:
    for name, path in job.opened.side_files.items():
        shutil.copyfile(path, folder / name)
    if "tokenizer.json" not in job.opened.side_files and "tokenizer.model" in job.opened.side_files:
        write_tokenizer_json(folder / "tokenizer.model", folder / "tokenizer.json")
    config = job.plan.config
    if job.masks:
        write_arrays(folder / FILE_NAME, job.masks)
    files: dict[str, dict[str, Any]] = {
        "config.json": side_files.config_json(config, dtype_name(job.dtype)),
        "preprocessor_config.json": side_files.preprocessor_json(
            config.vision.image_size, config.vision.num_patches, job.opened.resample
        ),
    }
    if "generation_config.json" not in job.opened.side_files:
        files["generation_config.json"] = side_files.GENERATION_JSON
    if job.opened.side_files and "tokenizer_config.json" not in job.opened.side_files:
        files["tokenizer_config.json"] = side_files.tokenizer_config_json()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
