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
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx

from ..checkpoint.adapters.base import compare_bases, find_base
from ..checkpoint.adapters.merge import AdapterPath, open_adapters
from ..checkpoint.load import DTYPES
from ..checkpoint.open import open_checkpoint
from ..checkpoint.wanted import has_tokenizer
from ..errors import InputError, PgMlxError
from ..files.folder import check_target, whole_folder
from ..files.regular import expanded
from ..files.shards import ShardWriter
from ..ops.device import dtype_name
from ..processor import Processor
from ..quantization import Recipe
from ..regions.mask_vae import read_masks
from .choose import calibration_of, check_method, check_tokenizer, choose_recipe
from .plan import make_plan
from .report import Report, model_card
from .samples import AskedPictures, Calibration, Sample, default_samples
from .side_files import write_side_files
from .tokenizer_json import JSON_PER_MODEL_BYTE
from .weights import FittedPacker, Packer, Progress, working_bytes, write_weights
from .written import check_inputs_outside, owned, write_manifest

if TYPE_CHECKING:
    from .candidates import Chosen
    from .quality import Quality


SMALL_FILES_BYTES = 1 << 16
"""More than config.json, the model card, the index and the other small files take together."""


class Conversion:
    """A conversion ready to run: everything that can be wrong without reading weights has been checked.

    source, recipe and the options are those of `convert`. headers_only: of a hub repository download no weights and no
    tokenizer; such a conversion cannot be run. Raises InputError for everything that shapes and small files show.
    """

    def __init__(
        self,
        source: str | Path,
        recipe: Recipe | None = None,
        *,
        dequantize: bool = False,
        dtype: str | None = None,
        adapter_path: AdapterPath = None,
        tokenizer: str | Path | None = None,
        need_tokenizer: bool = True,
        mask_decoder: str | Path | None = None,
        revision: str | None = None,
        headers_only: bool = False,
    ):
        if recipe and dequantize:
            raise InputError("quantizing and dequantizing exclude each other")
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        adapters = open_adapters(adapter_path)
        given = tokenizer or headers_only or any(has_tokenizer(adapter.folder) for adapter in adapters)
        named = find_base(source, revision, need_tokenizer and not given)
        adapters = [*open_adapters(named.adapters), *adapters]
        compare_bases(adapters, str(named.checkpoint))
        checkpoint = open_checkpoint(
            named.checkpoint, revision=named.revision, tokenizer=tokenizer, headers_only=headers_only
        )
        if adapters:
            if not tokenizer:
                checkpoint = checkpoint.with_tokens_of(adapters)
            if checkpoint.is_quantized() and not (recipe or dequantize):
                raise InputError(
                    f"{checkpoint.name} is quantized; "
                    "merging an adapter needs -q (pack it again) or -d (leave it float)"
                )
            checkpoint = checkpoint.merged(adapters)
        if need_tokenizer and (tokenizer or not checkpoint.headers_only):
            check_tokenizer(checkpoint)
        stored = mx.bfloat16 if recipe and checkpoint.dtype == mx.float32 else checkpoint.dtype
        masks = mask_decoder or checkpoint.mask_decoder
        self.checkpoint = checkpoint
        self.recipe = recipe
        folders = (adapter.folder for adapter in adapters)
        inputs = (source, named.checkpoint, *folders, *(path for path in (tokenizer, mask_decoder) if path))
        self._source = expanded(source)
        self._inputs = [path for path in map(expanded, inputs) if path.exists()]
        self.plan = make_plan(checkpoint, recipe, dequantize)
        check_method(recipe, self.plan)
        self.dtype = DTYPES[dtype] if dtype else stored
        """The dtype in which float tensors and affine scales are written."""
        self.masks: dict[str, mx.array] = read_masks(masks) if masks else {}
        """Weights of the decoder of <seg> codes, and of its encoder where the file had it; empty if there is none."""

    def expected_bytes(self) -> int:
        """Size of the weights that will be written."""
        return sum(module.bytes_after(self.dtype.size) for module in self.plan.modules)

    def expected_peak(self, calibrating: int = 0) -> int:
        """Bytes of memory: the largest tensor as it is read, its packed form, and the work on a slice. If pictures
        calibrate, what that takes, or the packed model that answers about them."""
        before, after = self.checkpoint.dtype.size, self.dtype.size
        both = (m.bytes_before(before) + (m.bytes_after(after) if m.target else 0) for m in self.plan.modules)
        plain = max(both) + working_bytes()
        if not calibrating:
            return plain
        from .peak import calibration_peak

        peak = calibration_peak(self.plan.modules, self.checkpoint.config, calibrating, before)
        return max(plain, peak, self.expected_bytes())

    def run(
        self,
        target: Path,
        *,
        force: bool = False,
        in_place: bool = False,
        check: bool = True,
        calibration: Calibration | None = None,
        calibration_prompts: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Report:
        """Write the folder `target`. Options and errors are those of `convert`."""
        force = force or in_place
        self.check_target(target, force, calibration, in_place)
        samples = calibration_of(self.recipe, calibration, calibration_prompts)
        if samples and self.checkpoint.tokenizer is None:
            raise InputError("method gptq needs a tokenizer, for prompts and answers; --q-method mse needs none")
        start = time.perf_counter()
        mx.reset_peak_memory()
        report = progress or (lambda what, done, total: None)
        try:
            with whole_folder(target, force, owned) as folder:
                self._require_space(folder)
                write_side_files(folder, self.checkpoint, self.plan.config, dtype_name(self.dtype), self.masks)
                choice = self._write_weights(folder, samples, report)
                judging = samples[1] if samples else None
                quality = self._compare(folder, calibration, judging, report) if check else None
                written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
                result = Report(
                    target=target,
                    bytes_before=self.checkpoint.num_bytes,
                    bytes_after=written,
                    bits_per_weight=written * 8 / sum(module.parameters for module in self.plan.modules),
                    left_float=self.plan.left_float,
                    seconds=time.perf_counter() - start,
                    peak_memory_bytes=mx.get_peak_memory(),
                    quality=quality,
                    choice=choice,
                )
                if quality:
                    (folder / "quality.json").write_text(json.dumps(asdict(quality), indent=1) + "\n")
                (folder / "README.md").write_text(model_card(self.checkpoint.name, self.recipe, result))
                write_manifest(folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise PgMlxError(f"no space left to write {target}; nothing was changed") from error
            where = f" ({error.filename})" if error.filename else ""
            raise PgMlxError(f"cannot write {target}: {error.strerror or error}{where}") from error
        return result

    def check_target(
        self, target: Path, force: bool, calibration: Calibration | None = None, in_place: bool = False
    ) -> None:
        """Raises InputError if `target` may not be written: see `convert`."""
        place = check_target(target, force, owned)
        inputs = [*self._inputs, *([expanded(calibration)] if calibration else [])]
        if in_place:
            if not (self._source.exists() and place.exists() and place.samefile(self._source)):
                raise InputError(f"in place means that the source itself is replaced, and {target} is another folder")
            inputs = [path for path in inputs if not path.samefile(place)]
        check_inputs_outside(place, inputs)

    def _write_weights(
        self, folder: Path, samples: tuple[list[Sample], list[Sample]] | None, report: Progress
    ) -> Chosen | None:
        """By GPTQ, if there are samples and it proves best; else by the recipe's method, which needs none."""
        header, size = self._header_bytes(), self.expected_bytes()
        if samples:
            from .candidates import write_best

            processor = Processor.from_folder(folder, self.plan.config.vision.image_size)
            return write_best(self.checkpoint, self.plan, folder, self.dtype, samples, processor, header, report, size)
        packer = FittedPacker(self.dtype) if self.recipe and self.recipe.method == "mse" else Packer(self.dtype)
        writer = ShardWriter(folder, header_bytes=header)
        write_weights(self.plan, self.checkpoint.source, writer, packer, report, size)
        return None

    def _header_bytes(self) -> int:
        """Room for the head of a shard that held every tensor."""
        return 4096 + sum(4 * (len(module.name) + 120) for module in self.plan.modules)

    def _require_space(self, folder: Path) -> None:
        if (needed := self._needed_space()) > (free := shutil.disk_usage(folder).free):
            raise PgMlxError(f"the result needs {needed / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free")

    def _needed_space(self) -> int:
        """Bytes of everything that will be written: weights, their header, and the files beside them."""
        given = {name: path.stat().st_size for name, path in self.checkpoint.side_files.items()}
        made = 0 if "tokenizer.json" in given else given.get("tokenizer.model", 0) * JSON_PER_MODEL_BYTE
        masks = sum(array.nbytes for array in self.masks.values())
        results = 2 if self.recipe and self.recipe.method == "gptq" else 1
        weights = results * (self.expected_bytes() + self._header_bytes())
        return weights + sum(given.values()) + made + masks + SMALL_FILES_BYTES

    def _compare(
        self, folder: Path, calibration: Calibration | None, samples: Sequence[Sample] | None, report: Progress
    ) -> Quality | None:
        """The quality card on the samples, or on the default ones; None without a tokenizer, which answers need."""
        if self.checkpoint.tokenizer is None:
            return None
        from .quality import compare
        from .task_scores import task_scores

        samples = samples or default_samples(calibration)
        size = self.expected_bytes()

        def progress(done: int, total: int) -> None:
            report(f"comparing with the source, {done} of {total}", size, size)

        quality = compare(self.checkpoint, folder, samples=samples, progress=progress)
        score = calibration.scores if isinstance(calibration, AskedPictures) else None
        return replace(quality, scores=task_scores(self.checkpoint, folder, score, samples)) if score else quality


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
    q_method: str | None = None,
    dequantize: bool = False,
    dtype: str | None = None,
    adapter_path: AdapterPath = None,
    tokenizer: str | Path | None = None,
    need_tokenizer: bool = True,
    mask_decoder: str | Path | None = None,
    revision: str | None = None,
    force: bool = False,
    in_place: bool = False,
    check: bool = True,
    calibration: Calibration | None = None,
    calibration_prompts: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Convert `source` (folder, hub repository or big_vision .npz) into the folder `target`.

    Without any q_ option or `quantize` what is float stays float. dtype: of float tensors and scales; if not given, as
    stored, except that float32 becomes bfloat16 in a quantized folder. check: compare the result with the source
    (see quality.py) on the pictures in `calibration`, or on a few drawn ones. q_method: how codes are chosen, one of
    quantization.METHODS; "gptq" calibrates on three of four pictures in `calibration`, with `calibration_prompts`, the
    pictures' own or the card's, and compares on the others. mask_decoder: a file of the decoder of <seg> codes
    (vae-oid.npz) to put into the folder; one that is in the source's folder is copied anyway.
    force: replace `target` if it is a folder that a conversion wrote and nothing in it has changed since. A folder that
    holds anything else, the source or the working directory is never replaced. in_place: `target` is `source`, which
    the result replaces when it is complete; as with force, only what a conversion wrote is.
    Raises InputError for wrong options or sources, PgMlxError if the disk is full; the target then is as it was before.
    """
    recipe = choose_recipe(quantize, q_bits, q_group_size, q_mode, q_recipe, q_overrides, q_method)
    conversion = Conversion(
        source,
        recipe,
        dequantize=dequantize,
        dtype=dtype,
        adapter_path=adapter_path,
        tokenizer=tokenizer,
        need_tokenizer=need_tokenizer,
        mask_decoder=mask_decoder,
        revision=revision,
    )
    return conversion.run(
        Path(target).expanduser(),
        force=force,
        in_place=in_place,
        check=check,
        calibration=calibration,
        calibration_prompts=calibration_prompts,
        progress=progress,
    )
