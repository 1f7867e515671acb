"""From settings to a run: everything that can be wrong is found before any weight is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from PIL import Image

from ..checkpoint import hub
from ..checkpoint.adapters.base import find_base
from ..checkpoint.load import LoadOptions, Progress, load_with
from ..checkpoint.mask_decoder import PUBLISHED_NAME, PUBLISHED_SPACE, find_mask_decoder
from ..checkpoint.open import Checkpoint, locate, open_checkpoint
from ..demo import CHECKPOINT
from ..errors import InputError
from ..paligemma import PaliGemma
from ..processor import Processor
from ..regions.mask_vae import MaskEncoder
from .adapting import TrainedAdapter, adapt, train_all
from .batches import Batches, BatchOptions, Mix, parse_mix
from .dataset import Dataset, Lengths, check_lengths, read_dataset
from .evaluate import spread
from .example import Example
from .features import ImageFeatures
from .memory import StepPlan, choose
from .regions import RegionWriter
from .settings import EPOCHS, TrainSettings
from .sheet import sheet
from .state import BEST, Write
from .step import StepOptions, Trainer
from .writing import adapter_writer, checkpoint_writer

OnProgress = Callable[[int, int], None]
"""Called with how many pictures are checked, and how many there are."""


@dataclass(frozen=True)
class TrainingPlan:
    """A fine-tuning before any weight is read."""

    settings: TrainSettings
    checkpoint: Checkpoint
    base: str
    """What an adapter names as its base: a repository, or the absolute path of a folder."""
    revision: str | None
    processor: Processor
    dataset: Dataset
    mixes: tuple[Mix, ...]
    lengths: Lengths
    """Lengths of the training data's rows."""
    steps: int
    chosen: StepPlan
    """Rows at a time and checkpointing, with the memory that they will take."""
    notes: tuple[str, ...] = field(default=())

    @property
    def digest(self) -> str:
        """The digest of all data, mixed data included."""
        state = hashlib.blake2b(self.dataset.digest().encode(), digest_size=16)
        for mix in self.mixes:
            state.update(Dataset(mix.examples).digest().encode())
        return state.hexdigest()

    def summary(self) -> list[str]:
        """What is about to be learnt, and what it will take, as lines for people."""
        data, tokens = self.dataset, self.lengths.suffix
        counts = f"{len(data.train)} rows to learn from, {len(data.valid)} to validate with, {len(data.test)} to test"
        lines = [f"data: {counts}"]
        if data.classes:
            lines.append(f"classes: {', '.join(data.classes[:12])}{', ...' if len(data.classes) > 12 else ''}")
        lines += [
            f"tokens of prompts: {_spread(self.lengths.prefix)}; of answers: {_spread(tokens)}",
            f"image tokens: {self.checkpoint.config.vision.num_patches} a row",
            f"steps: {self.steps} of {self.settings.rows} rows",
            *(f"mixed in: {len(mix.examples)} rows, {mix.share:.0%} of each step" for mix in self.mixes),
            *self.chosen.lines(self.settings.rows),
            *(f"note: {note}" for note in (*data.notes, *self.notes)),
        ]
        return lines

    def sheet(self) -> Image.Image:
        """The first examples drawn, with their boxes and masks."""
        return sheet(spread(self.dataset.train, 12))


def _spread(numbers: Sequence[int]) -> str:
    ordered = sorted(numbers)
    return f"{ordered[0]} to {ordered[-1]}, in the middle {ordered[len(ordered) // 2]}"


def plan(
    settings: TrainSettings,
    *,
    size: int = 1,
    made: dict | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> TrainingPlan:
    """Read the data and the headers of the model: the weights of a repository stay on the hub. size: processes that
    share each step. made: what a run that goes on has decided (`StepPlan.made`).

    Raises InputError for settings, data or a model that cannot be, DataError with a line for each fault of the data,
    and PgMlxError if the hub cannot be reached.
    """
    named = find_base(settings.model or CHECKPOINT, settings.revision, settings.tokenizer is None)
    if named.adapters:
        raise InputError(
            f"{settings.model} is an adapter: give its base, {named.checkpoint}, as --model, and it as "
            "--resume-adapter-file"
        )
    checkpoint = open_checkpoint(
        named.checkpoint, revision=named.revision, tokenizer=settings.tokenizer, headers_only=True
    )
    if checkpoint.headers_only and settings.tokenizer is None:
        checkpoint = checkpoint.with_tokenizer(named.checkpoint)
    if checkpoint.tokenizer is None:
        raise InputError(f"{checkpoint.name} has no tokenizer; give one with --tokenizer")
    if (
        settings.fine_tune_type == "full"
        and checkpoint.is_quantized()
        and settings.dtype is None
        and _stays_packed(checkpoint)
    ):
        raise InputError(f"{checkpoint.name} is quantized: --fine-tune-type full needs float weights, lora does not")
    processor = Processor(checkpoint.read_tokenizer(), checkpoint.config.vision.image_size, checkpoint.resample)
    read = dict(options=settings.data_options(), seed=settings.seed, on_progress=on_progress)
    dataset = read_dataset(settings.data, val_share=settings.val_share, **read)  # type: ignore[arg-type]
    mixes = tuple(
        Mix(read_dataset(path, val_share=0, **read).train, share)  # type: ignore[arg-type]
        for path, share in map(parse_mix, settings.mix)
    )
    lengths = check_lengths(dataset.train, processor, settings.max_seq_length)
    others = [check_lengths(mix.examples, processor, settings.max_seq_length) for mix in mixes]
    if settings.max_seq_length is not None:
        check_lengths((*dataset.valid, *dataset.test), processor, settings.max_seq_length)
    batches = Batches(dataset.train, processor, _batch_options(settings, 0, size), mixes=mixes)
    steps = settings.iters or batches.steps(settings.epochs or EPOCHS)
    settings.schedule_of(steps)
    pictures = {
        str(row.image) for row in (*dataset.train, *dataset.valid, *(row for mix in mixes for row in mix.examples))
    }
    chosen = choose(checkpoint, settings, [lengths, *others], len(pictures), size, made)
    path = Path(named.checkpoint).expanduser()
    base = str(path.resolve()) if path.exists() else str(named.checkpoint)
    notes = list[str]()
    if "map" not in settings.metrics and any(row.kind != "text" for row in dataset.valid):
        notes.append("mAP of boxes is not computed; it needs --metrics map and pip install 'pg_mlx[train]'")
    return TrainingPlan(
        settings, checkpoint, base, named.revision, processor, dataset, mixes, lengths, steps, chosen, tuple(notes)
    )


def _stays_packed(checkpoint: Checkpoint) -> bool:
    from ..memory.residency import SMALL_BYTES
    from ..ops import device

    return device.is_gpu() or checkpoint.num_bytes > SMALL_BYTES


@dataclass(frozen=True)
class Ready:
    """A model that learns, and its batches."""

    model: PaliGemma
    processor: Processor
    adapter: TrainedAdapter | None
    trainer: Trainer
    batches: Batches
    write: Write


def load(plan: TrainingPlan, group: mx.distributed.Group | None = None, progress: Progress | None = None) -> Ready:
    """Read the weights, and put the adapter onto them. Raises InputError, and PgMlxError, as `load_with` does."""
    settings, rank, size = plan.settings, 0, 1
    if group is not None:
        rank, size = group.rank(), group.size()
    options = LoadOptions(
        dtype=settings.dtype,
        tokenizer=settings.tokenizer,
        mask_decoder=settings.mask_decoder,
        revision=plan.revision,
    )
    model, processor = load_with(plan.base, options, progress)
    adapter = None
    if settings.fine_tune_type == "full":
        train_all(model, settings.train_vision, settings.learns_images)
    else:
        adapter = adapt(model, settings.low_rank(), settings.resume_adapter_file)
    step = StepOptions(settings.loss_options(), settings.optimizer_options(), plan.chosen.checkpointing)
    trainer = Trainer(model, step, adapter, group)
    data = plan.dataset
    rows = (*data.train, *data.valid, *data.test, *(row for mix in plan.mixes for row in mix.examples))
    writer = RegionWriter(encoder_for(rows, settings.mask_decoder, plan.base, plan.revision))
    features = None if learns_images(model) else ImageFeatures(model.encode_image)
    batches = Batches(
        plan.dataset.train,
        processor,
        _batch_options(settings, rank, size),
        writer=writer,
        features=features,
        mixes=plan.mixes,
    )
    if adapter is not None:
        write = adapter_writer(adapter, plan.base, plan.revision, settings.lora_dropout)
    else:
        write = checkpoint_writer(
            model, open_checkpoint(plan.base, revision=plan.revision, tokenizer=settings.tokenizer)
        )
    return Ready(model, processor, adapter, trainer, batches, write)


def load_best(plan: TrainingPlan, ready: Ready, out: Path) -> PaliGemma:
    """The model as it was after the best evaluation; as it is now if there was none. `ready` ends with it."""
    best = out.expanduser() / BEST
    if not best.is_dir():
        return ready.model
    if ready.adapter is not None:
        ready.adapter.remove()
        adapt(ready.model, plan.settings.low_rank(), best)
        return ready.model
    return load_with(best, LoadOptions(dtype=plan.settings.dtype))[0]


def learns_images(model: PaliGemma) -> bool:
    """Whether the features of a picture change while this model learns."""
    return any(tree_flatten(part.trainable_parameters()) for part in (model.vision_tower, model.connector))


def encoder_for(
    rows: Sequence[Example], given: str | None, model: str | Path, revision: str | None = None
) -> MaskEncoder | None:
    """The encoder of masks, where these rows have masks to encode. given: a file that the user names; else it is the
    model's own, or the published one.

    Raises InputError if the file holds no encoder, and PgMlxError if the published one cannot be fetched.
    """
    if not any(row.kind == "segment" and any(one.mask for one in row.objects) for row in rows):
        return None
    if given is None:
        path = locate(find_base(model, revision).checkpoint, revision)
        given_path = find_mask_decoder(path) if path.is_dir() else None
        return MaskEncoder.load(given_path or hub.space_file(PUBLISHED_SPACE, PUBLISHED_NAME))
    return MaskEncoder.load(given)


def _batch_options(settings: TrainSettings, rank: int, size: int) -> BatchOptions:
    return BatchOptions(settings.rows, settings.seed, settings.augment, rank=rank, size=size)
