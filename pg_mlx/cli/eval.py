"""pg-mlx eval: the scores of models and adapters on examples, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files.whole import write_whole
from .options import Parser, bounded, load_progress
from .progress import WorkProgress
from .train_options import add_data_options

if TYPE_CHECKING:
    from ..training.evaluate import Evaluation
    from ..training.example import Example

DESCRIPTION = "Score models on examples with known answers: the loss, exact answers, mAP of boxes, IoU of masks."

EPILOG = """\
A model is a folder, a .npz, a repository, or an adapter, which names its base itself. MODEL+ADAPTER puts an adapter
onto a model. Several models are compared in one table.

examples:
  %(prog)s --model ./out/best --data ./coins
  %(prog)s --model ./pg2 --model ./pg2-4bit --model ./pg2-4bit+./out/best --data ./coins --split test
  %(prog)s --model ./out --data ./coins --format json --answers answers.jsonl

exit code: 0, 1 for a failure, 2 for a wrong input.
"""

_LINE = ("model", "where", "answer", "true")
"""The keys of a line of --answers."""
_MAX_LINE = 1 << 20

_NAMES = {"valid": "valid", "validation": "valid", "val": "valid", "test": "test", "train": "train", "all": "all"}


@dataclass(frozen=True)
class Asked:
    """A model of the table."""

    name: str
    model: str | None
    adapters: tuple[str, ...]


def parser(program: str) -> argparse.ArgumentParser:
    """The options of this command."""
    p = Parser(program, DESCRIPTION, EPILOG)
    p.add_argument(
        "-m", "--model", action="append", metavar="M", help="repeatable; M+A for an adapter on it (the demo)"
    )
    p.add_argument("--adapter-path", action="append", default=[], metavar="A", help="on every model; repeatable")
    p.add_argument("--revision", metavar="R", help="branch, tag or commit, if one repository is asked")
    p.add_argument("--tokenizer", metavar="PATH", help="the tokenizer, for a model that has none")
    p.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="to compute in")
    p.add_argument("--mask-decoder", metavar="FILE", help="vae-oid.npz (default: the model's own)")
    p.add_argument(
        "--split", choices=tuple(_NAMES), default=None, help="(default: test if there is one, else valid, else all)"
    )
    p.add_argument("--rows", type=bounded(1, 1_000_000), metavar="N", help="only the first N")
    p.add_argument("--batch-size", type=bounded(1, 256), default=8, metavar="N", help="answers at a time (8)")
    p.add_argument("--metrics", metavar="A,B", help="loss, exact, map, iou (what fits)")
    p.add_argument("--constrain", action="store_true", help="detect and segment: only records with the prompt's labels")
    p.add_argument("--answers", metavar="FILE", help="write each answer as a line of JSON")
    p.add_argument("--format", choices=("text", "json"), default="text", help="of the scores on stdout")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    add_data_options(p.add_argument_group("the data"))
    return p


def run(argv: list[str], program: str) -> int:
    """Score and print; returns the exit code. Raises PgMlxError."""
    args = parser(program).parse_args(argv)
    if not args.data:
        raise InputError("no data was given: --data FOLDER or FILE (--help explains)")
    models = [_asked(name, args.adapter_path) for name in args.model or [""]]
    answers = _answers_file(args.answers) if args.answers else None

    from ..training.dataset import read_dataset
    from ..training.scores import possible_metrics
    from ..training.settings import TrainSettings

    metrics = tuple(args.metrics.split(",")) if args.metrics else ("loss", *possible_metrics())
    settings = TrainSettings(
        data=args.data, prefix=args.prefix, task=args.task, images=args.images, per_class=args.per_class,
        classes=args.classes, label=args.label, lowercase=args.lowercase, metrics=metrics,
    )  # fmt: skip
    with WorkProgress("checking pictures", "picture", after=0.5) as progress:
        dataset = read_dataset(
            args.data, settings.data_options(), val_share=args.val_share, seed=args.seed, on_progress=progress.show
        )
    split = _NAMES[args.split] if args.split else "test" if dataset.test else "valid" if dataset.valid else "all"
    rows = (*dataset.train, *dataset.valid, *dataset.test) if split == "all" else getattr(dataset, split)
    rows = rows[: args.rows] if args.rows else rows
    if not rows:
        raise InputError(f"{args.data} has no {split} split")
    print(f"{len(rows)} rows ({split})", file=sys.stderr)
    results = list[dict[str, Any]]()
    lines = list[str]()
    try:
        for asked in models:
            found = _score(asked, args, rows, metrics)
            results.append({"model": asked.name, "split": split, "loss": found.loss, **found.scores.to_json()})
            values = ((asked.name, one.example.where, one.text, one.example.suffix) for one in found.predicted)
            lines += [json.dumps(dict(zip(_LINE, each, strict=True))) for each in values]
    finally:  # also if a later model fails, or a person presses Ctrl-C
        if results:
            print(json.dumps(results) if args.format == "json" else "\n".join(table(results)), flush=True)
        if results and answers:
            write_whole(answers, lambda partial: partial.write_text("".join(f"{line}\n" for line in lines)))
    return 0


def _answers_file(name: str) -> Path:
    """Where answers will be written. A file there is replaced only if it holds such answers. Raises InputError before
    minutes pass."""
    path = Path(name).expanduser()
    if not path.parent.is_dir():
        raise InputError(f"--answers: no such folder: {path.parent}")
    if path.exists() and not _holds_answers(path):
        raise InputError(f"--answers: {path} is not a file that --answers wrote, so it is not replaced")
    return path


def _holds_answers(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.readline(_MAX_LINE)
        line = json.loads(start) if start else dict.fromkeys(_LINE)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(line, dict) and list(line) == list(_LINE)


def _asked(name: str, adapters: Sequence[str]) -> Asked:
    """M, or M+A; a file or folder whose name has a + in it is that."""
    model, mark, adapter = name.partition("+")
    if not mark or Path(name).expanduser().exists():
        return Asked(name or "the demo", name or None, tuple(adapters))
    return Asked(name, model or None, (adapter, *adapters))


def _score(asked: Asked, args: argparse.Namespace, rows: Sequence[Example], metrics: Sequence[str]) -> Evaluation:
    """Load a model, ask it, and let it go."""
    from ..checkpoint.load import LoadOptions, load_with
    from ..demo import CHECKPOINT
    from ..training.batches import Batches
    from ..training.evaluate import evaluate
    from ..training.prepare import encoder_for
    from ..training.regions import RegionWriter

    options = LoadOptions(
        dtype=args.dtype,
        adapter_path=list(asked.adapters) or None,
        revision=args.revision,
        tokenizer=args.tokenizer,
        mask_decoder=args.mask_decoder,
    )
    with load_progress() as progress:
        model, processor = load_with(asked.model or CHECKPOINT, options, progress.show)
    writer = RegionWriter(encoder_for(rows, args.mask_decoder, asked.model or CHECKPOINT, args.revision))
    with WorkProgress(asked.name, "row", after=0.5) as progress:
        found = evaluate(
            model, processor, rows, Batches(rows, processor, writer=writer), metrics,
            batch_size=args.batch_size, constrain=args.constrain, progress=progress.show,
        )  # fmt: skip
    assert found is not None
    return found


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """A row for each model."""
    from ..training.card import FIGURES

    keys = [key for key in ("loss", *FIGURES) if any(result.get(key) is not None for result in results)]
    heads = ["model", *(FIGURES.get(key, key) for key in keys)]
    cells = [[result["model"], *(_shown(result.get(key)) for key in keys)] for result in results]
    widths = [max(len(row[column]) for row in [heads, *cells]) for column in range(len(heads))]
    return [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in [heads, *cells]
    ]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
