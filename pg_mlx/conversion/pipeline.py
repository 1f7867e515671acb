"""read -> merge -> quantize -> write -> compare: any PaliGemma to a folder that MLX programs load.

One tensor is in memory at a time, and it is gone before the next is read; the shard it belongs to grows on disk. So the
peak is about the largest tensor (the embedding) and its packed copy, whatever the size of the model.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
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
from .choose import check_method, check_tokenizer
from .plan import make_plan
from .report import Report, all_tried, write_cards
from .room import header_bytes, side_bytes
from .samples import AskedPictures, Calibration, Sample, default_samples, distinct_pictures
from .side_files import write_side_files
from .target import MOST, Budget, Packing, SizeTarget, packing_samples
from .weights import FittedPacker, Packer, Progress, working_bytes, write_weights
from .written import check_inputs_outside, owned, write_manifest

if TYPE_CHECKING:
    from .by_budget import ChosenBits
    from .candidates import Chosen
    from .quality import Quality


class Conversion:
    """A conversion ready to run: everything that can be wrong without reading weights has been checked.

    recipe: or a size, for which `run` chooses the bits. The other options are those of `convert` (one_call.py).
    headers_only: of a hub repository download no weights and no tokenizer; such a conversion cannot be run. Raises
    InputError for everything that shapes and small files show.
    """

    def __init__(
        self,
        source: str | Path,
        recipe: Packing | None = None,
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
        self.target = recipe if isinstance(recipe, SizeTarget) else None
        self.recipe: Recipe | None = recipe.recipe(MOST) if isinstance(recipe, SizeTarget) else recipe
        folders = (adapter.folder for adapter in adapters)
        inputs = (source, named.checkpoint, *folders, *(path for path in (tokenizer, mask_decoder) if path))
        self._source = expanded(source)
        self._inputs = [path for path in map(expanded, inputs) if path.exists()]
        self.plan = make_plan(checkpoint, self.recipe, dequantize)
        check_method(self.recipe, self.plan)
        self.dtype = DTYPES[dtype] if dtype else stored
        """The dtype in which float tensors and affine scales are written."""
        size = self.dtype.size
        self.budget = Budget.of(self.target, self.plan, size, header_bytes(self.plan)) if self.target else None
        """What a size means; until the bits are chosen for it, the plan has the most bits."""
        self.bits: ChosenBits | None = None
        """The bits that `run` has chosen for a size."""
        self.masks: dict[str, mx.array] = read_masks(masks) if masks else {}
        """Weights of the decoder of <seg> codes, and of its encoder where the file had it; empty if there is none."""

    def expected_bytes(self) -> int:
        """Size of the weights that will be written; the most, as long as the bits for a size are to be chosen."""
        if self.budget and not self.bits:
            return self.budget.file_bytes
        return sum(module.bytes_after(self.dtype.size) for module in self.plan.modules)

    def expected_peak(self, samples: tuple[Sequence[Sample], Sequence[Sample]] | None = None) -> int:
        """Bytes of memory: the largest tensor as it is read, its packed form, and the work on a slice.

        samples: those that calibrate and those that judge. Then it is the most of that, of the model that answers, of
        calibrating and of judging, beside the pictures.
        """
        before, after = self.checkpoint.dtype.size, self.dtype.size
        both = (m.bytes_before(before) + (m.bytes_after(after) if m.target else 0) for m in self.plan.modules)
        plain = max(both) + working_bytes()
        if not samples:
            return plain
        from .peak import answering_peak, calibration_peak, judging_peak, measuring_peak, pixel_bytes, source_bytes

        modules, config = self.plan.modules, self.checkpoint.config
        calibrating, judging = ((distinct_pictures(some), len(some)) for some in samples)
        packed = max(self.expected_bytes(), self.budget.answering_bytes(after) if self.budget else 0)
        answering = source_bytes(self.checkpoint) or answering_peak(modules, config, packed, after)
        peaks, read = [plain, answering], judging
        if self.budget:
            peaks.append(measuring_peak(modules, config, calibrating[1], before))
        if self.recipe and self.recipe.method == "gptq":
            peaks.append(calibration_peak(modules, config, *calibrating, before))
            read = calibrating[0] + judging[0], calibrating[1] + judging[1]  # the source reads both at once
        peaks.append(judging_peak(modules, config, *read, before, after))
        return max(peaks) + pixel_bytes(config, calibrating[0] + judging[0])

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
        samples = packing_samples(self.target or self.recipe, calibration, calibration_prompts)
        if samples and self.checkpoint.tokenizer is None:
            raise InputError(
                f"{self.target.option.partition(' ')[0]} needs a tokenizer, for prompts and answers"
                if self.target
                else "method gptq needs a tokenizer, for prompts and answers; --q-method mse needs none"
            )
        start = time.perf_counter()
        mx.reset_peak_memory()
        report = progress or (lambda what, done, total: None)
        try:
            with whole_folder(target, force, owned) as folder:
                self._require_space(folder)
                if self.target and samples:
                    report = self._choose_bits(folder, samples, report)
                write_side_files(folder, self.checkpoint, self.plan.config, dtype_name(self.dtype), self.masks)
                choice = self._write_weights(folder, samples, report)
                judging = samples[1] if samples else None
                quality = self._compare(folder, calibration, judging, report) if check else None
                written = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
                tried = all_tried(self.bits, choice, quality, written)
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
                    bits=self.bits,
                    tried=tried,
                )
                write_cards(folder, self.checkpoint.name, self.recipe, result)
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

    def _choose_bits(self, folder: Path, samples: tuple[list[Sample], list[Sample]], report: Progress) -> Progress:
        """Settle recipe and plan for a size. Returns the progress of what follows."""
        from .by_budget import choose_bits

        assert self.target and self.budget
        self.bits, total = None, 2 * self.budget.file_bytes  # half of the time, about
        first = total // 2
        self.bits = choose_bits(
            self.checkpoint,
            self.target,
            self.budget,
            folder,
            self.dtype,
            samples,
            header_bytes(self.plan),
            lambda what, share: report(what, int(share * first), total),
        )
        self.recipe = self.bits.recipe
        self.plan = make_plan(self.checkpoint, self.recipe)
        self.bits.write(folder, self.checkpoint.name)
        return lambda what, done, size: report(what, first + done, total)

    def _write_weights(
        self, folder: Path, samples: tuple[list[Sample], list[Sample]] | None, report: Progress
    ) -> Chosen | None:
        """By GPTQ, if there are samples for it and it proves best; else by the recipe's method, which needs none."""
        header, size = header_bytes(self.plan), self.expected_bytes()
        if samples and self.recipe and self.recipe.method == "gptq":
            from .candidates import write_best

            processor = Processor.from_folder(folder, self.plan.config.vision.image_size)
            return write_best(self.checkpoint, self.plan, folder, self.dtype, samples, processor, header, report, size)
        packer = FittedPacker(self.dtype) if self.recipe and self.recipe.method == "mse" else Packer(self.dtype)
        writer = ShardWriter(folder, header_bytes=header)
        write_weights(self.plan, self.checkpoint.source, writer, packer, report, size)
        return None

    def _require_space(self, folder: Path) -> None:
        if (needed := self._needed_space()) > (free := shutil.disk_usage(folder).free):
            raise PgMlxError(f"the result needs {needed / 1e6:.1f} MB, but only {free / 1e6:.1f} MB are free")

    def _needed_space(self) -> int:
        """Bytes of everything that will be written: weights, their header, and the files beside them."""
        results = 2 if self.recipe and self.recipe.method == "gptq" else 1
        size = self.expected_bytes()
        if self.budget:  # the packed model that answers is gone before the others are written
            size = max(size, self.budget.answering_bytes(self.dtype.size))
        return results * (size + header_bytes(self.plan)) + side_bytes(self.checkpoint, self.masks)

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
