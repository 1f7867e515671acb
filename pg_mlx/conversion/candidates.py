"""Never worse: a calibrated result is written only if it is nearer to the source than the ones that need no data.

"rtn" is written first, then "mse" and "gptq". Pictures that did not calibrate judge: on each token of the same answers
(see answers.py), the divergence from what the source predicts. The nearest one is kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..checkpoint.open import Checkpoint, open_local
from ..files.shards import ShardWriter
from ..processor import Processor
from .answers import Answered, answered
from .calibrate import calibrated, calibrated_modules
from .layerwise import Streamed
from .metrics import Reading, mean_and_error, predict
from .plan import Plan
from .quality import read
from .samples import Sample
from .weights import FittedPacker, Packer, Progress, write_weights

_SHARES = {"rtn": 0.03, "answers": 0.12, "source": 0.05, "mse": 0.05, "gptq": 0.65, "judged": 0.1}
"""What part of the time each step takes, roughly; for the progress."""


@dataclass(frozen=True)
class Judgement:
    """How near a way of packing stays to the source, on pictures that did not calibrate."""

    method: str
    kl_mean: float
    """KL(source || result) in nats, over the tokens of the answers."""
    kl_error: float
    """Its standard error. The answers count as independent."""


@dataclass(frozen=True)
class Chosen:
    """Which method's weights were written, and what the judging pictures said of each."""

    method: str
    calibrated_on: int
    """Pictures."""
    judged_on: int
    """Other pictures."""
    positions: int
    """Tokens of the judged answers."""
    judgements: list[Judgement]

    def to_markdown(self) -> str:
        """A line for the model card."""
        found = ", ".join(f"{each.method} {each.kl_mean:.3g} ± {each.kl_error:.1g}" for each in self.judgements)
        return (
            f"chosen: {self.method}, the nearest to the source on {self.judged_on} pictures that did not calibrate "
            f"(KL in nats: {found}); calibrated on {self.calibrated_on} others"
        )


def write_best(
    checkpoint: Checkpoint,
    plan: Plan,
    folder: Path,
    dtype: mx.Dtype,
    samples: tuple[Sequence[Sample], Sequence[Sample]],
    processor: Processor,
    header_bytes: int,
    report: Progress,
    total: int,
) -> Chosen:
    """Write the weights of the best of "rtn", "mse" and "gptq" into a folder that has its config.json already.

    samples: those that calibrate and those that judge. header_bytes: of a shard. total: the bytes there will be.
    At most two results are on the disk at a time. Raises InputError for tensors that cannot be read, and PgMlxError if
    a model computes numbers that are not finite.
    """
    steps = _Steps(report, total)
    vocabulary = processor.tokenizer.vocab_size

    def write(method: str, packer: Packer, progress: Progress) -> Path:
        candidate = folder / method
        candidate.mkdir()
        shutil.copyfile(folder / "config.json", candidate / "config.json")
        write_weights(
            plan, checkpoint.source, ShardWriter(candidate, header_bytes=header_bytes), packer, progress, total
        )
        return candidate

    def judge(method: str) -> Judgement:
        result = read(method, Streamed(open_local(folder / method), mx.float32), *judging)
        kl = predict(source, result, vocabulary).kl
        return Judgement(method, *mean_and_error(kl, [len(text.answer) for text in judging[1]]))

    rtn = write("rtn", Packer(dtype), steps.weights("rtn"))
    calibrating, judging = answered(checkpoint, rtn, samples, processor, steps.counted("answers"))
    streamed = Streamed(checkpoint, mx.float32)
    source, hidden = _source(streamed, calibrating, judging)
    steps.counted("source")(1, 1)
    judgements = [judge("rtn")]
    write("mse", FittedPacker(dtype), steps.weights("mse"))
    judgements.append(judge("mse"))
    data_free = min(judgements, key=lambda each: each.kl_mean).method
    _remove(folder, {"rtn", "mse"} - {data_free})
    streamed.forget_tables()
    packed = calibrated(checkpoint, plan.modules, *calibrating, hidden, dtype)
    del hidden
    write("gptq", FittedPacker(dtype, packed, calibrated_modules(plan.modules)), steps.weights("gptq"))
    judgements.append(judge("gptq"))
    steps.counted("judged")(1, 1)
    best = min(judgements, key=lambda each: each.kl_mean).method
    for path in sorted((folder / best).iterdir()):
        if path.name != "config.json":
            path.rename(folder / path.name)
    _remove(folder, {data_free, "gptq"})
    return Chosen(best, len(calibrating[0]), len(judging[0]), sum(len(t.answer) for t in judging[1]), judgements)


def _source(streamed: Streamed, calibrating: Answered, judging: Answered) -> tuple[Reading, mx.array]:
    """The source's reading of what judges, and float32 [T, D], what its head reads at the answers that calibrate. Both
    come from one pass, which is half the reading."""
    shift = len(calibrating[0])
    moved = [text._replace(picture=text.picture + shift) for text in judging[1]]
    both = read("source", streamed, [*calibrating[0], *judging[0]], [*calibrating[1], *moved])
    positions = sum(len(text.answer) for text in calibrating[1])
    return both._replace(features=(), hidden=both.hidden[positions:]), both.hidden[:positions]  # no features are judged


def _remove(folder: Path, methods: set[str]) -> None:
    for method in methods:
        shutil.rmtree(folder / method)


class _Steps:
    """Progress over steps of different length, as bytes of `total`."""

    def __init__(self, report: Progress, total: int):
        self._report, self._total = report, total

    def _at(self, step: str, what: str, share: float) -> None:
        names = list(_SHARES)
        before = sum(_SHARES[name] for name in names[: names.index(step)])
        self._report(what, min(self._total, int(self._total * (before + share * _SHARES[step]))), self._total)

    def weights(self, step: str) -> Progress:
        """The progress of writing weights."""
        return lambda what, done, total: self._at(step, f"{step}: {what}", done / max(total, 1))

    def counted(self, step: str) -> Callable[[int, int], None]:
        """The progress of something that is counted."""
        return lambda done, total: self._at(step, f"{step}, {done} of {total}", done / total)
