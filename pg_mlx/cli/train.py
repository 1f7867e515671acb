"""pg-mlx train: fine-tune a model on pictures, and say how well it does."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .interrupts import note_interrupts
from .options import load_progress
from .progress import WorkProgress
from .train_options import config_arguments, parser

if TYPE_CHECKING:
    from ..training.evaluate import Evaluation
    from ..training.events import Ended
    from ..training.prepare import Ready, TrainingPlan
    from ..training.run import Callback
    from ..training.settings import TrainSettings
    from ..training.state import Begun

__all__ = ["parser", "run"]


def run(argv: list[str], program: str) -> int:
    """Train and print the scores; returns the exit code. Raises PgMlxError."""
    args, begun = _read(argv, program)

    from ..parallel.group import processes
    from ..training import prepare
    from ..training.run import TrainingRun
    from ..training.state import Begun, RunFolder, RunProgress
    from .train_view import TrainView

    settings = _settings(args)
    if begun is not None and (difference := settings.differs(begun.settings)):
        raise InputError(f"{args.adapter_path} was begun otherwise ({difference}); --resume keeps all settings")
    group = processes()
    first = group is None or group.rank() == 0
    view = TrainView(program, silent=not first)
    folder = RunFolder(args.adapter_path, settings.fine_tune_type == "full", args.force)
    if begun is None and not args.dry_run:
        folder.check()
    with WorkProgress("checking pictures", "picture", after=0.5, silent=not first) as progress:
        plan = prepare.plan(
            settings,
            size=group.size() if group else 1,
            made=begun.made if begun else None,
            on_progress=progress.show,
        )
    view.say(plan.summary())
    if args.dry_run:
        return _dry_run(args, plan)
    if begun is not None and plan.digest != begun.digest:
        raise InputError(f"{settings.data} is not the data with which {args.adapter_path} was begun")
    callback = _callback(args, settings) if first else None
    with load_progress(silent=not first) as progress:
        ready = prepare.load(plan, group, progress.show)
    at = RunProgress()
    if begun is None:
        folder.begin(Begun(settings, plan.digest, plan.chosen.made()))
    else:
        state, at = folder.resume()
        ready.trainer.restore(state)
        if first:
            folder.forget_after(at.step)
    pressed: list[int] = []
    note_interrupts(pressed)
    running = TrainingRun(
        settings=settings,
        model=ready.model,
        processor=ready.processor,
        trainer=ready.trainer,
        batches=ready.batches,
        schedule=settings.schedule_of(plan.steps),
        validation=plan.dataset.valid,
        folder=folder if first else None,
        write=ready.write,
        rows=plan.chosen.rows,
        base=plan.base,
        progress=at,
        group=group,
        callback=callback,
        stop=lambda: bool(pressed),
        validating=view.validating,
    )
    with view.watching(plan.steps, at.step):
        for event in running.events():
            view.show(event)
    ended = view.ended
    if first:
        test = _test(args, plan, ready) if settings.test and ended.reason != "interrupted" else None
        _print(args, ended, test)
    return 130 if ended.reason == "interrupted" else 0


def _read(argv: list[str], program: str) -> tuple[argparse.Namespace, Begun | None]:
    """The options, those of a configuration file and of a run that goes on included. Raises InputError."""
    p = parser(program)
    args = p.parse_args(argv)
    if args.config:
        argv = [*config_arguments(args.config), *argv]
        args = p.parse_args(argv)
    if not args.resume:
        if not args.data:
            raise InputError("no data was given: --data FOLDER or FILE (--help explains)")
        return args, None
    if args.force or args.dry_run:
        raise InputError("--resume goes on with a run; it goes with neither --force nor --dry-run")

    from ..training.state import RunFolder

    begun = RunFolder(args.adapter_path).read_begun()
    p.set_defaults(**begun.settings.to_json())
    return p.parse_args(argv), begun


def _settings(args: argparse.Namespace) -> TrainSettings:
    from ..training.settings import TrainSettings

    values = {field.name: getattr(args, field.name) for field in fields(TrainSettings)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if values["metrics"] is None:
        known = importlib.util.find_spec("pycocotools") is not None
        values["metrics"] = tuple(name for name in ("loss", "exact", "map", "iou") if known or name != "map")
    if values["num_layers"] == -1:  # mlx-lm's word for all
        values["num_layers"] = None
    return TrainSettings(**values)


def _dry_run(args: argparse.Namespace, plan: TrainingPlan) -> int:
    """Draw the examples beside OUT, and say where."""
    path = Path(args.adapter_path).expanduser()
    path = path.with_name(f"{path.name}.png")
    try:
        plan.sheet().save(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    print(f"{path} shows examples; nothing was trained", file=sys.stderr)
    return 0


def _callback(args: argparse.Namespace, settings: TrainSettings) -> Callback | None:
    if not args.report_to:
        return None
    try:
        from mlx_lm.tuner.callbacks import get_reporting_callbacks
    except ImportError:
        raise InputError("--report-to needs mlx-lm's callbacks: pip install 'pg_mlx[mlx-lm]'") from None
    try:
        config: Any = settings.to_json()
        return get_reporting_callbacks(args.report_to, args.project_name, args.adapter_path, config)
    except (ValueError, ImportError) as error:
        raise InputError(f"--report-to {args.report_to}: {error}") from None


def _test(args: argparse.Namespace, plan: TrainingPlan, ready: Ready) -> Evaluation | None:
    """The scores of the best on the test split."""
    from ..training.evaluate import evaluate
    from ..training.prepare import load_best

    if not plan.dataset.test:
        raise InputError(f"{plan.settings.data} has no test split for --test")
    settings, model = plan.settings, load_best(plan, ready, Path(args.adapter_path))
    with WorkProgress("testing", "row", after=0.5) as progress:
        return evaluate(
            model, ready.processor, plan.dataset.test, ready.batches, settings.metrics, settings.loss_options(),
            progress=progress.show,
        )  # fmt: skip


def _print(args: argparse.Namespace, ended: Ended, test: Evaluation | None) -> None:
    """The scores, on stdout."""
    from ..training.state import read_log

    lines = [line for line in read_log(Path(args.adapter_path).expanduser()) if line["event"] == "evaluation"]
    best = next((line for line in lines if line["step"] == ended.best_step), None)
    result: dict[str, Any] = {"folder": args.adapter_path, "step": ended.step, "ended": ended.reason}
    if best is not None:
        result["best_step"] = ended.best_step
        result["validation"] = {"loss": best["loss"], **best["scores"]}
    if test is not None:
        result["test"] = {"loss": test.loss, **test.scores.to_json()}
    if args.format == "json":
        print(json.dumps(result))
        return
    from .train_view import table

    print("\n".join(table(result)))
