"""pg-mlx convert: any PaliGemma checkpoint to a folder that MLX programs load."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..memory.size import format_size
from .options import Parser
from .progress import WorkProgress

if TYPE_CHECKING:
    from ..conversion.pipeline import Conversion
    from ..conversion.report import Report
    from ..conversion.samples import AskedPictures, Sample

DESCRIPTION = "Convert a PaliGemma checkpoint for MLX, quantized if wanted, whatever its size and your memory."

EPILOG = """\
sources: a Hugging Face repository or folder (old or new names), a big_vision .npz, an mlx-vlm folder (float or
quantized), each with any number of PEFT adapters on top.

recipes (--q-recipe), in bits:
  tiny       decoder 4, embedding/head 4, SigLIP 8      the fewest bytes a token
  balanced   decoder 4, embedding/head 6, SigLIP 8      what -q alone means
  quality    8 everywhere
  and for the published shapes, bits computed layer by layer, not measured on real weights (--dry-run shows them):
  paligemma-3b-4bit, paligemma2-3b-4bit, paligemma2-10b-4bit, paligemma2-28b-4bit

examples:
  %(prog)s --hf-path google/paligemma2-3b-mix-448 --mlx-path ./pg2-4bit -q
  %(prog)s --hf-path ./paligemma.npz --tokenizer ./tokenizer.model --mlx-path ./pg --dtype bfloat16
  %(prog)s --hf-path ./pg2 --adapter-path ./lora --mlx-path ./mine -q --q-override '*.embed_tokens=8'
  %(prog)s --hf-path ./pg2 --mlx-path ./pg2-4bit -q --dry-run
  %(prog)s --hf-path ./pg2 --mlx-path ./pg2-small --target-size 1.6GB --q-method gptq --calibration ./photos
  %(prog)s --hf-path ./pg2-tuned --mlx-path ./pg2-tuned-small --q-recipe ./pg2-small/bits.json
  %(prog)s --validate ./pg2-4bit
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The options of this command."""
    p = Parser(program, DESCRIPTION, EPILOG)
    p.add_argument(
        *("-m", "--model", "--hf-path"),
        dest="hf_path",
        metavar="SRC",
        help="folder, hub repository owner/name, or .npz file",
    )
    p.add_argument("--mlx-path", type=Path, default=Path("mlx_model"), metavar="DST", help="folder to write")
    p.add_argument("--revision", metavar="R", help="branch, tag or commit of a hub repository")
    p.add_argument("-q", "--quantize", action="store_true", help="pack the weights (recipe: balanced)")
    p.add_argument("--q-recipe", metavar="NAME", help="tiny, balanced, quality, one for a shape, or FILE.json (below)")
    p.add_argument("--q-bits", type=int, metavar="N", help="the same bits everywhere: 2, 3, 4, 5, 6 or 8")
    p.add_argument("--q-group-size", type=int, metavar="N", help="columns that share a scale: 32, 64 or 128")
    p.add_argument("--q-mode", metavar="MODE", help="affine (default), mxfp4, mxfp8 or nvfp4")
    p.add_argument(
        "--q-override",
        action="append",
        default=[],
        metavar="GLOB=PACKING",
        help="for some modules: bits (8), bits/group (4/32), a floating mode, or float; repeatable, first match wins",
    )
    p.add_argument("--target-size", metavar="SIZE", help="choose each matrix's bits for a file of this size (1.6GB)")
    p.add_argument("--target-per-token", metavar="SIZE", help="the same for what each token reads; SigLIP gets 8 bits")
    p.add_argument("--target-bits", type=float, metavar="N", help="the same for so many bits a weight, with scales")
    p.add_argument("-d", "--dequantize", action="store_true", help="unpack what is packed")
    p.add_argument("--dtype", metavar="D", help="of what stays float: float32, bfloat16 or float16")
    p.add_argument(
        "--adapter-path",
        action="append",
        default=[],
        metavar="A",
        help="PEFT adapter to merge, a folder or hub repository; repeatable",
    )
    p.add_argument(
        "--tokenizer", metavar="PATH", help="file, folder or hub repository of the tokenizer, for a source without one"
    )
    p.add_argument("--no-tokenizer", action="store_true", help="write weights only (to be used with load_model)")
    p.add_argument(
        "--mask-decoder", metavar="FILE", help="vae-oid.npz, to go into DST (one that SRC has comes along by itself)"
    )
    p.add_argument(
        "--q-method",
        metavar="METHOD",
        help="how codes are chosen: rtn (nearest, the default), mse (fitted, no data) or gptq (calibrated)",
    )
    p.add_argument(
        "--calibration",
        metavar="DIR",
        help="pictures on which the result is compared with the source, or labelled ones in a format that training "
        "reads, on which it is scored too; with gptq three of four calibrate, the rest judge",
    )
    p.add_argument(
        "--calibration-prompt",
        action="append",
        default=[],
        metavar="P",
        help="what the calibration asks (default: the labelled data's prompts, or the comparison's); repeatable, they "
        "take turns",
    )
    p.add_argument("--no-check", action="store_true", help="do not compare the result with the source")
    p.add_argument(
        "--force",
        action="store_true",
        help="replace DST, if convert wrote all that it holds",
    )
    p.add_argument(
        "--in-place",
        action="store_true",
        help="write into SRC itself, if convert wrote all that it holds: replaced when the result is complete",
    )
    p.add_argument("--dry-run", action="store_true", help="print what would be written; reads and downloads no weights")
    p.add_argument("--validate", type=Path, metavar="DIR", help="only check that a folder is complete for MLX programs")
    p.add_argument("--upload-repo", metavar="REPO", help="then upload DST to this hub repository")
    p.add_argument("--private", action="store_true", help="create that repository for yourself only")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    """Convert and print a report; returns the exit code. Raises PgMlxError."""
    args = parser(program).parse_args(argv)
    if args.validate is not None:
        return _validate(args.validate)
    if not args.hf_path:
        raise InputError("nothing to convert: --hf-path FOLDER, REPO or FILE.npz (--help explains)")

    from ..conversion import pipeline, upload
    from ..conversion.samples import AskedPictures
    from ..conversion.target import choose_packing, packing_samples
    from ..conversion.written import owned
    from ..files.folder import check_target
    from ..files.regular import expanded

    if args.private and not args.upload_repo:
        raise InputError("--private is about --upload-repo, which is not given")
    recipe = choose_packing(
        *(args.quantize, args.q_bits, args.q_group_size, args.q_mode, args.q_recipe, _overrides(args.q_override)),
        *(args.q_method, args.target_size, args.target_per_token, args.target_bits),
    )
    calibration = _calibration(args.calibration, args.calibration_prompt)
    prompts = [] if isinstance(calibration, AskedPictures) else args.calibration_prompt
    samples = packing_samples(recipe, calibration, prompts)
    if args.in_place:
        args.mlx_path = expanded(args.hf_path)
        if not args.mlx_path.is_dir():
            raise InputError(f"--in-place replaces a folder, and {args.hf_path} is none")
    if not args.dry_run:
        check_target(args.mlx_path, args.force or args.in_place, owned)  # before anything is downloaded
    upload_to = upload.check_login(args.upload_repo) if args.upload_repo and not args.dry_run else None
    conversion = pipeline.Conversion(
        args.hf_path,
        recipe,
        dequantize=args.dequantize,
        dtype=args.dtype,
        adapter_path=args.adapter_path,
        tokenizer=args.tokenizer,
        revision=args.revision,
        need_tokenizer=not args.no_tokenizer,
        mask_decoder=args.mask_decoder,
        headers_only=args.dry_run,
    )
    if left := conversion.plan.left_float:
        names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        print(f"left float, as no whole groups fit: {len(left)} modules ({names})", file=sys.stderr)
    if args.dry_run:
        print(table(conversion, samples))
        return 0
    if upload_to:
        upload.create(upload_to, args.private)
    with WorkProgress("converting", "B", scaled=True) as progress:
        report = conversion.run(
            args.mlx_path,
            force=args.force,
            in_place=args.in_place,
            check=not args.no_check,
            calibration=calibration,
            calibration_prompts=prompts,
            progress=lambda what, done, total: progress.show(done, total, what),
        )
    print(summary(report))
    if upload_to:
        print(upload.upload(args.mlx_path, upload_to))
    return 0


def _calibration(given: str | None, prompts: list[str]) -> str | AskedPictures | None:
    """The pictures; with questions of their own and right answers, where they are labelled."""
    if given is None:
        return None
    from ..training.labelled import holds_labels, read_labelled

    if not holds_labels(given):
        return given
    if len(prompts) > 1:
        raise InputError(
            f"{given} is labelled and so has its own prompts; one --calibration-prompt is for rows without"
        )
    return read_labelled(given, prompts[0] if prompts else None)


def _overrides(texts: list[str]) -> dict[str, str]:
    overrides: dict[str, str] = {}
    for text in texts:
        pattern, _, packing = text.rpartition("=")
        if not pattern or not packing:
            raise InputError(f"--q-override {text!r} is not of the form GLOB=PACKING")
        overrides.setdefault(pattern, packing)  # the first one wins, also over one with the same pattern
    return overrides


def _validate(folder: Path) -> int:
    from ..checkpoint.validate import validate

    problems = validate(folder)
    for problem in problems:
        print(problem)
    if problems:
        raise InputError(f"{folder} has {len(problems)} problem{'s' if len(problems) > 1 else ''}")
    print(f"{folder} is complete")
    return 0


def table(conversion: Conversion, samples: tuple[list[Sample], list[Sample]] | None = None) -> str:
    """What would be written, by component, as text for people. samples: those that calibrate and those that judge."""
    calibrating = len(samples[0]) if samples else 0
    peak = f"peak memory of the conversion: about {format_size(conversion.expected_peak(samples))}"
    if conversion.budget and conversion.target:
        return "\n".join([*conversion.budget.plan_of(conversion.target, conversion.dtype.size, calibrating), "", peak])
    from ..conversion.bit_table import table_of
    from ..conversion.target import read_by_tokens

    rows: list[tuple[str, ...]] = [("component", "parameters", "bits before", "after", "size before", "after")]
    modules = conversion.plan.modules
    parts = list(dict.fromkeys(module.component for module in modules))
    for part in [*parts, "all"]:
        mine = [module for module in modules if part in ("all", module.component)]
        count = sum(module.parameters for module in mine)
        before = sum(module.bytes_before(conversion.checkpoint.dtype.size) for module in mine)
        after = sum(module.bytes_after(conversion.dtype.size) for module in mine)
        bits = [f"{size * 8 / count:.2f}" for size in (before, after)]
        rows.append((part, f"{count:,}", *bits, format_size(before), format_size(after)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    tokens = read_by_tokens(modules)
    read = sum(m.bytes_after(conversion.dtype.size) for m in modules if m.component in tokens)
    bits = ["", table_of(conversion.plan.modules).text()] if conversion.recipe and conversion.recipe.complete else []
    return "\n".join(
        [*lines, *bits, "", peak, f"read from memory for each token decoded: {format_size(read)} and the cache"]
    )


def summary(report: Report) -> str:
    """A few lines about a finished conversion, as text for people."""
    lines = [
        f"{report.target}: {format_size(report.bytes_after)} (before: {format_size(report.bytes_before)}), "
        f"{report.bits_per_weight:.2f} bits a weight; {report.seconds:.1f} s, "
        f"peak {format_size(report.peak_memory_bytes)}"
    ]
    if report.bits:
        lines += [report.bits.to_markdown(), "", report.bits.table.text(), ""]
    if report.choice:
        lines.append(report.choice.to_markdown())
    if report.quality:
        lines += ["", report.quality.to_markdown()]
    return "\n".join(lines)
