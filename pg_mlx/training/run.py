"""The loop of a fine-tuning: steps, evaluations and saves. It prints nothing; each event is yielded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import mlx.core as mx

from ..errors import PgMlxError
from ..paligemma import PaliGemma
from ..processor import Processor
from .batches import Batches
from .card import model_card
from .curve import draw_curve
from .evaluate import Evaluation, Progress, evaluate, spread
from .events import Ended, Evaluated, Event, Saved, Stepped, TrainReport, figures, log_line
from .example import Example
from .schedule import Schedule
from .settings import EVALUATIONS, TrainSettings
from .state import ANSWERS, CURVE, RunFolder, RunProgress, Write, read_log
from .step import MicroBatch, StepResult, Trainer


class Callback(Protocol):
    """What mlx-lm's TrainingCallback is: another program that wants to know the figures."""

    def on_train_loss_report(self, train_info: dict) -> None:
        """Called with each TrainReport's figures."""

    def on_val_loss_report(self, val_info: dict) -> None:
        """Called with each Evaluated's figures."""


@dataclass
class TrainingRun:
    """A fine-tuning that is ready to start, or to go on where `progress` says.

    folder: None in a process that only computes (rank above 0). write: writes what was learnt into a folder. rows: at a
    time. base: what the model is called on its card. stop: becomes true when a person wants the run to end. validating:
    called with the rows of a validation that are done, and all.
    """

    settings: TrainSettings
    model: PaliGemma
    processor: Processor
    trainer: Trainer
    batches: Batches
    schedule: Schedule
    validation: Sequence[Example]
    folder: RunFolder | None
    write: Write
    rows: int
    base: str
    progress: RunProgress = field(default_factory=RunProgress)
    group: mx.distributed.Group | None = None
    callback: Callback | None = None
    stop: Callable[[], bool] = lambda: False
    validating: Progress = lambda done, total: None

    def events(self) -> Iterator[Event]:
        """Run to the end. Raises PgMlxError if the loss becomes infinite or the disk is full; what was saved stays."""
        begun = time.perf_counter()
        for event in self._events():
            line = log_line(event)
            if line is not None and self.folder is not None:
                self.folder.log(line)
            if self.callback is not None and isinstance(event, TrainReport):
                self.callback.on_train_loss_report(event.callback_info())
            elif self.callback is not None and isinstance(event, Evaluated):
                self.callback.on_val_loss_report(event.callback_info())
            yield event
        ended = Ended(self.progress.step, self._reason, self.progress.best_step, time.perf_counter() - begun)
        if self.folder is not None:
            self.folder.log(log_line(ended) or {})
        yield ended

    def _events(self) -> Iterator[Event]:
        settings, steps = self.settings, self.schedule.steps
        window = _Window()
        saved_at = self.progress.step if self.folder is not None and self.folder.exists else -1
        self._reason = "done"
        while self.progress.step < steps:
            if self._agreed(self.stop()):
                self._reason = "interrupted"
                break
            if settings.patience is not None and self.progress.since_best >= settings.patience:
                self._reason = "no better"
                break
            result = self._step(self.progress.step)
            step = self.progress.step + 1
            self.progress = replace(
                self.progress, step=step, trained_tokens=self.progress.trained_tokens + result.count
            )
            if not math.isfinite(result.loss) or not math.isfinite(result.gradient_norm):
                raise PgMlxError(
                    f"the loss is {result.loss} at step {step}: it has diverged; try a lower --learning-rate"
                )
            window.add(result.loss, result.count)
            yield Stepped(step, result.loss)
            last = step == steps
            if step % settings.steps_per_report == 0 or last:
                yield window.report(step, result.learning_rate, result.gradient_norm, self.progress.trained_tokens)
            if self._evaluates(step):
                paused = time.perf_counter()
                evaluated = self._evaluated()
                if evaluated is not None:
                    yield evaluated
                    self._draw()
                self._agree_on_progress()
                window.skip(time.perf_counter() - paused)
            if step % settings.save_every == 0:
                yield from self._save()
                saved_at = step
        if self._reason == "done" and self._agreed(self.stop()):
            self._reason = "interrupted"
        if saved_at != self.progress.step:
            yield from self._save()

    def _step(self, number: int) -> StepResult:
        """One step, from micro-batches that this process has its share of."""
        made = self.batches.batches(number, self.rows)
        micros = [MicroBatch(batch, numbers) for batch, numbers in made]
        return self.trainer.step(micros, number, self.schedule(number))

    def _evaluates(self, step: int) -> bool:
        every = self.settings.steps_per_eval or max(1, round(self.schedule.steps / EVALUATIONS))
        wanted = bool(self.validation) and self.settings.val_batches != 0
        return wanted and (step % every == 0 or step == self.schedule.steps)

    def _evaluated(self) -> Evaluated | None:
        """Ask the validation data. Only the first process does; None in others, and if it was interrupted."""
        if self.folder is None:
            return None
        begun = time.perf_counter()
        found = evaluate(
            self.model, self.processor, self.chosen(), self.batches, self.settings.metrics,
            self.settings.loss_options(), batch_size=max(self.rows, 8), cancelled=self.stop,
            progress=self.validating,
        )  # fmt: skip
        if found is None:
            return None
        key = merit(found)
        best = self.progress.best_step is None or key > self.progress.best_key
        step = self.progress.step
        if best:
            self.progress = replace(self.progress, best_step=step, best_key=key, since_best=0)
            if not self.folder.exists:
                self._write_state()
            self.folder.save_best(self.write)
        else:
            self.progress = replace(self.progress, since_best=self.progress.since_best + 1)
        evaluated = Evaluated(step, found.loss, found.scores, best, time.perf_counter() - begun)
        picture = found.picture(self.processor)
        if picture is not None and self.folder.exists:
            self.folder.write_pictures({ANSWERS: picture})
        return evaluated

    def chosen(self) -> Sequence[Example]:
        """The validation rows that are asked during the run: as many as --val-batches says, from all over."""
        most = self.settings.val_batches * self.settings.batch_size
        return self.validation if most < 0 else spread(self.validation, most)

    def _save(self) -> Iterator[Event]:
        if self.folder is not None:
            self._write_state()
            self.folder.write_card(model_card(self.settings, self.base, read_log(self.folder.path), self.progress))
        yield Saved(self.progress.step)

    def _write_state(self) -> None:
        assert self.folder is not None
        self.folder.save(self.write, self.trainer.state(), self.progress)

    def _draw(self) -> None:
        if self.folder is not None and self.folder.exists:
            self.folder.write_pictures({CURVE: draw_curve(read_log(self.folder.path))})

    def _agreed(self, own: bool) -> bool:
        """Whether any process of the group says so."""
        if self.group is None or self.group.size() == 1:
            return own
        return bool(mx.distributed.all_sum(mx.array(float(own)), group=self.group).item())

    def _agree_on_progress(self) -> None:
        """All processes learn from the first one whether the evaluation was better."""
        if self.group is None or self.group.size() == 1:
            return
        own = float(self.progress.since_best) if self.folder is not None else 0.0
        shared = mx.distributed.all_sum(mx.array(own), group=self.group).item()
        self.progress = replace(self.progress, since_best=round(float(shared)))  # type: ignore[arg-type]


def merit(found: Evaluation) -> tuple[float, ...]:
    """By what the best of a run is chosen; the larger the better: the score of the task, then the loss.

    Boxes are judged by mAP, masks by their IoU, texts by exact match. Where a score is not computed, the loss decides.
    """
    known = figures(found.scores)
    main = next((known[name] for name in ("mask_iou", "map", "exact") if name in known), 0.0)
    return round(main, 6), -found.loss if found.loss is not None else 0.0


class _Window:
    """Sums since the last report."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._begun = time.perf_counter()
        self._sum, self._count, self._steps = 0.0, 0, 0

    def skip(self, seconds: float) -> None:
        """What was going on meanwhile, such as an evaluation, takes no time of steps."""
        self._begun += seconds

    def add(self, loss: float, count: int) -> None:
        """A step's mean loss, and what it is the mean over."""
        self._sum, self._count, self._steps = self._sum + loss * count, self._count + count, self._steps + 1

    def report(self, step: int, rate: float, norm: float, trained: int) -> TrainReport:
        """All of it, and the next window begins."""
        seconds = max(1e-9, time.perf_counter() - self._begun)
        made = TrainReport(
            step=step,
            loss=self._sum / self._count,
            learning_rate=rate,
            gradient_norm=norm,
            steps_per_second=self._steps / seconds,
            tokens_per_second=self._count / seconds,
            trained_tokens=trained,
            peak_memory_bytes=mx.get_peak_memory(),
        )
        self._clear()
        return made
