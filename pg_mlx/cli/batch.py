"""pg-mlx batch: ask about very many pictures, on one machine or several, and go on where a run has ended."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, PgMlxError
from .hints import chat_hint
from .interrupts import note_interrupts
from .options import (
    Parser,
    add_answer_options,
    add_model_options,
    add_region_options,
    bounded,
    load_options,
    load_progress,
)
from .progress import BatchProgress
from .session import NO_MODEL, sampling

if TYPE_CHECKING:
    from ..batch.job import BatchJob, JobFolder

DESCRIPTION = """\
Ask PaliGemma about very many pictures. Answers go to files of rows. A file appears when it is whole.
Give the same line again to go on where the last run has ended, however it ended."""

EPILOG = """\
SOURCE is a folder with pictures, or one of these files, or a folder with files of one kind:
  .txt      a path or an address a line
  .jsonl    {"id": ..., "image": path or address, "prompt": ...} a line; id and prompt may be left out
  .tar      as webdataset has them, not compressed
  .parquet  a column with pictures, paths or addresses, perhaps one with ids and one with prompts (needs pyarrow)

examples:
  %(prog)s photos --prompt "caption en" --model ./pg2-4bit --to captions
  %(prog)s --status captions
  %(prog)s --to captions --merge captions.jsonl
  %(prog)s photos --prompt "caption en" --model ./pg2-4bit --to captions --part 1/2      (and 2/2 on another machine)
  %(prog)s data/*.tar --prompt "caption en" --prompt "detect cat" --to found --format parquet
  %(prog)s questions.jsonl --to answers --engine ray --address auto

exit code: 0, 1 if a row has an error or rows are missing, 2 for a wrong input, 130 after Ctrl-C.
"""


def parser(program: str) -> argparse.ArgumentParser:
    """The options of `batch`."""
    p = Parser(program, DESCRIPTION, EPILOG)
    p.add_argument("sources", nargs="*", metavar="SOURCE", help="what holds or names the pictures")
    p.add_argument("--to", metavar="DIR", help="the folder of the job: a file for each shard, and job.json")
    p.add_argument(
        *("-p", "--prompt"),
        action="append",
        default=[],
        metavar="P",
        help="the task text; repeatable, all are asked about every picture (default: each entry's own)",
    )
    p.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl", help="of the rows (default: jsonl)")
    p.add_argument(
        "--shard", type=bounded(1, 1_000_000), default=1000, metavar="N", help="pictures a file (default: 1000)"
    )
    p.add_argument("--image-column", metavar="C", help="of parquet and JSON lines (default: image, bytes, path ...)")
    p.add_argument("--id-column", metavar="C", help="of parquet and JSON lines (default: id, key)")
    p.add_argument(
        "--part", type=_part, default=(1, 1), metavar="I/N", help="answer every N-th shard only, from the I-th"
    )
    p.add_argument("--retry", action="store_true", help="answer shards with errors in them again, too")
    p.add_argument("--engine", choices=("here", "ray"), default="here", help="ray: on a Ray cluster (default: here)")
    p.add_argument("--address", metavar="A", help="of the Ray cluster: HOST:PORT, or auto for this machine's")
    p.add_argument("--status", metavar="DIR", help="say how far a job is, and nothing else")
    p.add_argument("--merge", metavar="FILE", help="write the rows of a job that is whole into one file")
    add_model_options(p)
    add_answer_options(p)
    add_region_options(p.add_argument_group("boxes and masks"))
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def run(argv: list[str], program: str) -> int:
    """Answer, and return the exit code. Raises PgMlxError, which is InputError for a wrong input."""
    args = parser(program).parse_args(argv)
    from ..batch.job import JobFolder

    if args.status is not None:
        return _status(JobFolder.open(_folder(args.status)))
    if args.to is None:
        raise InputError("no folder for the answers was given: --to DIR (--help explains)")
    folder = _folder(args.to)
    if args.merge is not None:
        if args.sources:
            raise InputError("--merge takes no SOURCE: it joins what is answered in --to")
        return _merge(JobFolder.open(folder), folder, Path(args.merge).expanduser())
    if not args.sources:
        raise InputError("no SOURCE was given: a folder, list, tar or parquet file (--help explains)")
    if args.engine != "ray" and args.address:
        raise InputError("--address needs --engine ray")
    if args.engine == "ray":
        args.sources, folder, args.model = list(map(_absolute, args.sources)), folder.absolute(), _absolute(args.model)
    job = _job(args)
    place = JobFolder.begin(job, folder)
    return _answer(args, program, job, place)


def _answer(args: argparse.Namespace, program: str, job: BatchJob, place: JobFolder) -> int:
    numbers = place.numbers(*args.part)
    errors = {number: place.files.count_errors(number) for number in numbers if place.files.is_whole(number)}
    place.files.sweep(place.files.path(number).name for number in errors)
    todo = [number for number in numbers if number not in errors or (args.retry and errors[number])]
    before = sum(count for number, count in errors.items() if number not in todo)
    report = BatchProgress(program, sum(map(place.rows_of, todo)), sum(map(place.rows_of, numbers)), before)
    stop: list[int] = []
    failed: dict[int, str] = {}
    try:
        if todo and args.engine == "ray":
            from ..batch.on_ray import run_on_ray

            note_interrupts(stop)

            def done(number: int, count: int) -> None:
                report.shard(place.rows_of(number), count)

            failed = run_on_ray(job, place, todo, args.address, args.batch_size, done, lambda: bool(stop))
        elif todo:
            _here(args, job, place, todo, report, stop)
    finally:
        report.close()
    for number, reason in failed.items():
        print(f"{program}: shard {number} was set aside: {reason}", file=sys.stderr)
    if stop:
        print("interrupted; the same line goes on where this run has ended", file=sys.stderr)
        return 130
    return int(bool(report.errors or failed))


def _here(
    args: argparse.Namespace,
    job: BatchJob,
    place: JobFolder,
    todo: list[int],
    report: BatchProgress,
    stop: list[int],
) -> None:
    from ..batch.run import answer_shards, load_answerer
    from ..processor.notes import print_as_lines

    print_as_lines()
    if job.model is None:
        print(NO_MODEL, file=sys.stderr)
    with load_progress() as progress:
        answerer = load_answerer(job, args.batch_size, progress.show)
    note_interrupts(stop)
    report.begin()
    answer_shards(job, place, todo, answerer, report.row, lambda: bool(stop))


def _job(args: argparse.Namespace) -> BatchJob:
    from ..batch.entries import Columns
    from ..batch.job import BatchJob
    from ..processor import plain_prompt
    from ..regions.prompt import RegionPrompt
    from ..regions.select import RegionFilter

    if "-" in args.prompt:
        raise InputError("--prompt - is for generate; here every machine needs the prompt itself")
    for hint in dict.fromkeys(filter(None, map(chat_hint, args.prompt))):
        print(hint, file=sys.stderr)
    for prompt in args.prompt if args.constrain else ():
        RegionPrompt.required(plain_prompt(prompt))
    load = load_options(args)
    return BatchJob(
        sources=tuple(args.sources),
        prompts=tuple(dict.fromkeys(args.prompt)),
        model=args.model,
        load={option.name: getattr(load, option.name) for option in fields(load)},
        options={**asdict(sampling(args)), "constrain": args.constrain},
        kept=asdict(RegionFilter(args.min_score, args.dedup_iou, args.max_regions)),
        columns=Columns(args.image_column, args.id_column),
        shard_size=args.shard,
        format=args.format,
    )


def _status(place: JobFolder) -> int:
    whole = [number for number in place.numbers() if place.files.is_whole(number)]
    rows, of = sum(map(place.rows_of, whole)), sum(map(place.rows_of, place.numbers()))
    errors = sum(map(place.files.count_errors, whole))
    print(f"{rows} of {of} rows, {len(whole)} of {len(place.shards)} shards; {errors} rows with an error")
    return int(rows < of)


def _merge(place: JobFolder, folder: Path, target: Path) -> int:
    missing = [number for number in place.numbers() if not place.files.is_whole(number)]
    if missing:
        raise PgMlxError(f"{len(missing)} of {len(place.shards)} shards are missing, so nothing is merged")
    if target.exists():
        raise InputError(f"{target} exists already; choose another name")
    if not target.parent.is_dir():
        raise InputError(f"no such folder: {target.parent}")
    if target.parent.resolve() == folder.resolve():
        raise InputError(f"{target} would lie among the shards; choose another folder")
    place.files.join(place.numbers(), target)
    return 0


def _part(text: str) -> tuple[int, int]:
    """An argparse type: 3/16."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, as 3/16")
    return int(match[1]), int(match[2])


def _folder(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"cannot use the folder {path}: {error}") from None


def _absolute(path: str | None) -> str | None:
    """A path as other machines understand it, too; what is no path here stays."""
    return str(Path(path).expanduser().absolute()) if path and Path(path).expanduser().exists() else path
