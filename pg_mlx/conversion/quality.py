"""The quality card: how far a converted checkpoint has moved from its source, on pictures and prompts.

The result answers greedily. Then it and the source are streamed (see layerwise.py) over the same pictures, prompts
and answers, and their predictions of every token of the answers are compared (see metrics.py). So the figures
do not depend on how far two decodes run apart, and nothing but the result is ever whole in memory.

Memory: at first the result as `load_model` holds it and the cache of one answer; once that is freed, what streaming one
model takes plus the embedding of the other, as stored, and what metrics.py says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np

from ..checkpoint.load import Progress, load_model
from ..checkpoint.open import Checkpoint, open_local
from ..config import PaliGemmaConfig
from ..errors import InputError, PgMlxError
from ..generation import SamplingOptions
from ..generation.sampling import bar
from ..ops.device import dtype_name
from ..paligemma import PaliGemma
from ..processor import Processor, load_image
from .layerwise import AnsweredPrompt, Streamed
from .metrics import Reading, box_drifts, feature_error, mean_and_error, predict
from .samples import Sample, default_samples
from .task_scores import score_table

__all__ = ["Quality", "Sample", "compare", "default_samples"]

CAPPED_PIXELS = 10.0


@dataclass(frozen=True)
class Quality:
    """The figures; plain numbers, so `dataclasses.asdict` of it is JSON and `Quality(**json)` brings it back."""

    pictures: int
    samples: int
    positions: int
    """Tokens of all answers, <eos> included: places where two distributions over the next token are compared."""
    max_tokens: int
    dtype: str
    kl_mean: float
    """Kullback-Leibler divergence KL(source || result) in nats, over the ids that have text."""
    kl_max: float
    kl_first: float
    """The mean over the first tokens of the answers alone, which depend on picture and prompt only."""
    top1_agreement: float
    """Share of positions where both would choose the same token."""
    greedy_agreement: float
    """Share of the answers' tokens before the place where the source's own greedy answer goes another way."""
    identical_answers: float
    """Share of the answers that the source gives word for word (as far as max_tokens lets them run)."""
    feature_error: float
    """RMS of the difference of the image features, relative to the RMS of the source's."""
    feature_cosine: float
    """Mean cosine between the image features of source and result."""
    coordinates: int
    """Location tokens in the answers."""
    box_drift_mean: float | None
    """Pixels of the original picture between the location that the source prefers and the result's; None where
    the answers hold no location."""
    box_drift_max: float | None
    kl_error: float | None = None
    """Standard error of kl_mean, with answers as independent; None in files of older versions, like what follows."""
    box_drift_capped: float | None = None
    """As box_drift_mean, but no coordinate counts more than CAPPED_PIXELS: a few that jump to another object would
    outweigh all others."""
    coordinates_within_pixel: float | None = None
    """Share of the coordinates that drift by at most one pixel."""
    scores: dict[str, dict[str, float]] | None = None
    """Task scores in 0..1 by name, of "source" and "result", where right answers were given (see task_scores.py)."""
    tried: list[dict[str, Any]] | None = None
    """What was tried, each with its name, bytes, kl and standard error (see tried.py); None if nothing else was."""

    def to_markdown(self) -> str:
        """The body of a section in the model card."""
        drift = "no boxes in the answers"
        if self.box_drift_mean is not None:
            drift = f"{self.box_drift_mean:.2f} / {self.box_drift_max:.2f} pixels ({self.coordinates} coordinates)"
        if self.box_drift_capped is not None and self.coordinates_within_pixel is not None:
            drift += (
                f"; {self.box_drift_capped:.2f} pixels with each capped at {CAPPED_PIXELS:g}, "
                f"{self.coordinates_within_pixel:.1%} within one pixel"
            )
        error = "" if self.kl_error is None else f" ± {self.kl_error:.1g}"
        rows = [
            ("KL(source ‖ this model), mean / max", f"{self.kl_mean:.4g}{error} / {self.kl_max:.4g} nats"),
            ("the same for first tokens, mean", f"{self.kl_first:.4g} nats"),
            ("same most likely token", f"{self.top1_agreement:.1%}"),
            ("greedy tokens before the first difference", f"{self.greedy_agreement:.1%}"),
            ("identical answers", f"{self.identical_answers:.1%}"),
            ("image features, relative RMS error", f"{self.feature_error:.3%}"),
            ("image features, mean cosine", f"{self.feature_cosine:.6f}"),
            ("box coordinates, mean / max drift", drift),
        ]
        method = (
            f"{self.samples} greedy answers of up to {self.max_tokens} tokens, about {self.pictures} pictures. At each "
            f"of their {self.positions} tokens this model's prediction is compared with the source's, given the same "
            f"tokens before it ({self.dtype} activations)."
        )
        table = ["| Figure | Value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        return "\n".join([method, "", *table, *score_table(self.scores)])


def compare(
    source: Checkpoint,
    result: Path,
    *,
    samples: Sequence[Sample],
    max_tokens: int = 32,
    dtype: mx.Dtype | str | None = None,
    processor: Processor | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Compare the checkpoint folder `result` with the checkpoint that it was made of.

    dtype: of both models' activations and float weights, as for `load_model`. processor: the result's own if not given.
    progress: called with the number of steps done and of all steps. Raises InputError for bad pictures, and if the
    result is not a sound checkpoint or of another shape than the source; PgMlxError if one of the two computes numbers
    that are not finite.
    """
    SamplingOptions(max_tokens)
    if not samples:
        raise InputError("there are no samples to compare the checkpoints on")
    tick = _Ticks(progress)
    theirs = Streamed(source, dtype, tick)
    ours = Streamed(open_local(result), dtype, tick)
    processor = processor or Processor.from_folder(result, ours.config.vision.image_size)
    vocabulary = processor.tokenizer.vocab_size
    _check_comparable(theirs.config, ours.config, vocabulary)
    tick.total = len(samples) + theirs.num_blocks + ours.num_blocks + 1

    pictures, sizes, texts = prepare(samples, processor)
    texts = answer(load_model(result, dtype=dtype), processor, pictures, texts, max_tokens, tick)
    mx.clear_cache()
    readings = read("source", theirs, pictures, texts), read("result", ours, pictures, texts)
    predictions = predict(*readings, vocabulary)
    tick()

    lengths = [len(text.answer) for text in texts]
    firsts = np.cumsum([0, *lengths[:-1]])
    matched = [
        int(np.cumprod(top == text.answer).sum())
        for text, top in zip(texts, np.split(predictions.source_top, firsts[1:]), strict=True)
    ]
    error, cosine = feature_error(*readings)
    drifts = box_drifts(*readings, texts, sizes, processor.tokenizer.location_ids)
    return Quality(
        pictures=len(pictures),
        samples=len(texts),
        positions=sum(lengths),
        max_tokens=max_tokens,
        dtype=dtype_name(ours.dtype),
        kl_mean=float(predictions.kl.mean()),
        kl_max=float(predictions.kl.max()),
        kl_first=float(predictions.kl[firsts].mean()),
        top1_agreement=float((predictions.source_top == predictions.result_top).mean()),
        greedy_agreement=sum(matched) / sum(lengths),
        identical_answers=float(np.mean(np.equal(matched, lengths))),
        feature_error=error,
        feature_cosine=cosine,
        coordinates=len(drifts),
        box_drift_mean=float(np.mean(drifts)) if drifts else None,
        box_drift_max=max(drifts) if drifts else None,
        kl_error=mean_and_error(predictions.kl, lengths)[1],
        box_drift_capped=float(np.minimum(drifts, CAPPED_PIXELS).mean()) if drifts else None,
        coordinates_within_pixel=float((np.array(drifts) <= 1).mean()) if drifts else None,
    )


def _check_comparable(source: PaliGemmaConfig, result: PaliGemmaConfig, vocabulary: int) -> None:
    for what, one, other in (
        ("pictures of {} pixels", source.vision.image_size, result.vision.image_size),
        ("patches of {} pixels", source.vision.patch_size, result.vision.patch_size),
        ("a decoder {} wide", source.text.hidden_size, result.text.hidden_size),
    ):
        if one != other:
            raise InputError(f"not the same model: the source has {what.format(one)}, the result {what.format(other)}")
    rows = min(source.text.vocab_size, result.text.vocab_size)
    if vocabulary > rows:
        raise InputError(f"the tokenizer has {vocabulary} pieces, the embedding only {rows} rows")


def read(name: str, model: Streamed, pictures: Sequence[mx.array], texts: Sequence[AnsweredPrompt]) -> Reading:
    """The outputs of a streamed model. name: for messages. Raises PgMlxError if they are not finite."""
    features = model.features(pictures)
    hidden = mx.concatenate(model.hidden(features, texts))
    if not mx.isfinite(hidden).all().item():
        raise PgMlxError(f"the {name} computes numbers that are not finite; try another dtype")
    return Reading(model, features, hidden)


class _Ticks:
    """Counts steps for a progress callback."""

    def __init__(self, progress: Progress | None):
        self.done, self.total, self._progress = 0, 0, progress

    def __call__(self) -> None:
        self.done += 1
        if self._progress:
            self._progress(self.done, self.total)


# --- answering ------------------------------------------------------------------------------------------


def prepare(
    samples: Iterable[Sample], processor: Processor
) -> tuple[list[mx.array], list[tuple[int, int]], list[AnsweredPrompt]]:
    """Pixels [1, H, W, 3] and original (width, height) of each distinct picture, and the samples without answers."""
    numbers: dict[str | int, int] = {}
    pictures: list[mx.array] = []
    sizes: list[tuple[int, int]] = []
    texts: list[AnsweredPrompt] = []
    for sample in samples:
        if sample.picture not in numbers:
            numbers[sample.picture] = len(pictures)
            image = load_image(sample.image)
            pictures.append(mx.array(processor.pixels(image))[None])
            sizes.append(image.size)
        texts.append(AnsweredPrompt(numbers[sample.picture], processor.prompt_ids(sample.prompt), ()))
    return pictures, sizes, texts


def answer(
    model: PaliGemma,
    processor: Processor,
    pictures: Sequence[mx.array],
    texts: Sequence[AnsweredPrompt],
    max_tokens: int,
    tick: Callable[[], None],
) -> list[AnsweredPrompt]:
    """The texts with the model's greedy answers, which end with <eos> or after max_tokens. Sorted by picture."""
    answered = []
    for number, pixels in enumerate(pictures):
        features = model.encode_image(pixels)
        mx.eval(features)
        for text in texts:
            if text.picture == number:
                answered.append(text._replace(answer=_greedy(model, processor, features, text.prefix, max_tokens)))
                tick()
    return answered


def _greedy(
    model: PaliGemma, processor: Processor, features: mx.array, prefix: Sequence[int], max_tokens: int
) -> list[int]:
    vocab_size = processor.tokenizer.vocab_size
    choose, barred = SamplingOptions(max_tokens).sampler(vocab_size), bar(processor.tokenizer.barred, vocab_size)
    capacity = features.shape[1] + len(prefix) + max_tokens
    logits, cache = model.prefill(features, mx.array([prefix]), capacity=capacity)
    answer: list[int] = []
    while True:
        token = choose(logits if barred is None else logits[:, :vocab_size] + barred)
        answer.append(cast(int, token.item()))
        if len(answer) == max_tokens or answer[-1] == processor.tokenizer.eos_id:
            return answer
        logits, cache = model.step(token, cache)
