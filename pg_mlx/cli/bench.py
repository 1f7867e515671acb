"""pg-mlx bench: how long each stage takes here, and how far that is from what the machine can do."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError
from .options import Parser, add_model_options, bounded, load_options, load_progress
from .ranks import add_parallel_options, with_ranks

DESCRIPTION = "Time each stage of an answer, beside the least work it needs and the machine's own speed."

EPILOG = """\
examples:
  %(prog)s                                the bundled demo checkpoint
  %(prog)s --model ./pg2-4bit --json > bench.json

docs/performance.md explains how to read it. exit code: 0, 1 for a failure, 2 for a wrong input.
"""


_positive = bounded(1, 10_000)


def _rows(text: str) -> tuple[int, ...]:
    return tuple(int(_positive(part)) for part in text.split(","))


def parser(program: str) -> argparse.ArgumentParser:
    """The options of this command."""
    p = Parser(program, DESCRIPTION, EPILOG)
    add_model_options(p)
    p.add_argument("--prompt", default="caption en", metavar="P", help="(default: caption en)")
    p.add_argument("--rows", type=_rows, default=(1, 2, 4, 8, 16), metavar="N,N", help="(default: 1,2,4,8,16)")
    p.add_argument("--repeats", type=_positive, default=5, metavar="N", help="of vision and prefill (default: 5)")
    p.add_argument("--steps", type=_positive, default=16, metavar="N", help="decode steps (default: 16)")
    p.add_argument("--no-questions", action="store_true", help="on a Mac, leave out the experiments")
    p.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    add_parallel_options(p)
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    """Measure and print; returns the exit code. Raises PgMlxError."""
    args = parser(program).parse_args(argv)
    return with_ranks(args, lambda: _measure(args, program))


def _measure(args: argparse.Namespace, program: str) -> int:
    import mlx.core as mx

    from ..checkpoint.load import load_with
    from ..checkpoint.open import locate
    from ..demo import CHECKPOINT, PICTURES
    from ..measure import experiments, machine
    from ..measure.decode_work import decode_kernels
    from ..measure.stages import MachineLimits, StageTime, measure
    from ..measure.work import Work

    def note(what: str) -> None:
        print(f"{program}: {what} ...", file=sys.stderr)

    options = load_options(args)
    path = locate(args.model, args.revision) if args.model else CHECKPOINT
    note("loading")
    with load_progress() as progress:
        model, processor = load_with(path, options, progress.show)
    prompt_ids = processor.prompt_ids(args.prompt)
    if len(prompt_ids) > 4096:
        raise InputError(f"the prompt has {len(prompt_ids)} tokens; bench takes up to 4096")
    note("copying and multiplying, for comparison")
    limits = MachineLimits(machine.copy_bandwidth(), machine.matmul_rate(model.dtype))
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    stored = sum(file.stat().st_size for file in files)
    stages = [StageTime("load", 1, model.load_s, Work(0, stored))]
    pixels = mx.array(processor.pixels(str(PICTURES[0])))[None]
    stages += measure(model, pixels, prompt_ids, rows=args.rows, repeats=args.repeats, steps=args.steps, note=note)
    answers = []
    if experiments.on_a_mac() and not args.no_questions and args.team is None:
        note("open questions")
        answers = experiments.ask(model, pixels, prompt_ids, str(path), note)
    text, vision = model.config.text, model.config.vision
    report: dict[str, Any] = {
        "machine": machine.description()
        | {"copied_bytes_per_second": limits.copied_bytes, "matmul_flops_per_second": limits.flops},
        "model": {
            "name": Path(args.model).name if args.model else "bundled demo",
            "decoder": f"{text.model_type}, {text.num_hidden_layers} layers of {text.hidden_size}",
            "tower": f"{vision.num_hidden_layers} layers of {vision.hidden_size}, {vision.image_size} px",
            "dtype": machine.dtype_name(model.dtype),
            "prefix_tokens": vision.num_patches + len(prompt_ids),
            "kernels_per_step_on_a_gpu": None if args.team else decode_kernels(model).total(),
            "peak_memory_bytes": mx.get_peak_memory(),
        },
        "stages": [stage.report(limits) for stage in stages],
        "questions": [vars(answer) for answer in answers],
    }
    print(json.dumps(report, indent=1) if args.json else table(report))
    return 0


def table(report: dict[str, Any]) -> str:
    """The report as text for people."""
    machine, model = report["machine"], report["model"]
    kernels = model["kernels_per_step_on_a_gpu"] or "uncounted"
    lines = [
        f"{machine['chip']}, {machine['cpu_cores']} CPU cores, {machine['memory_bytes'] / 1e9:.0f} GB, "
        f"MLX {machine['mlx']} on {machine['backend']}, BLAS {machine['blas'] or 'not found'}",
        f"copies {machine['copied_bytes_per_second'] / 1e9:.1f} GB/s, multiplies "
        f"{machine['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s in {model['dtype']}",
        f"{model['name']}: {model['decoder']}; {model['tower']}; prefix of {model['prefix_tokens']} tokens, "
        f"{kernels} kernels a decode step on a GPU, "
        f"peak {model['peak_memory_bytes'] / 1e9:.2f} GB",
        "",
        f"{'stage':<8}{'rows':>5}{'ms':>10}{'tokens/s':>10}{'GFLOP':>10}{'GB':>9}{'of matmul':>11}{'of copy':>9}",
    ]
    for stage in report["stages"]:
        speed = stage["tokens_per_second"]
        lines.append(
            f"{stage['stage']:<8}{stage['rows']:>5}{stage['seconds'] * 1e3:>10.2f}{f'{speed:.1f}' if speed else '':>10}"
            f"{stage['flops'] / 1e9:>10.3f}{stage['bytes'] / 1e9:>9.4f}"
            f"{stage['of_matmul_rate']:>11.1%}{stage['of_copy_bandwidth']:>9.1%}"
        )
    if report["questions"]:
        lines += ["", "what nobody had measured on a Mac, answered by this run:"]
        lines += [f"- {answer['question']} {answer['answer']}" for answer in report["questions"]]
    return "\n".join(lines)
