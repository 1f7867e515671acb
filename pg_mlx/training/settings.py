"""All settings of a fine-tuning in one value: what the command's flags say, and what run.json keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from .adapting import LowRankOptions
from .formats import DataOptions
from .loss import LossOptions, Mean
from .optimizer import OptimizerOptions
from .schedule import Schedule, Shape
from .scores import METRICS

LEARNING_RATES = {"lora": 1e-4, "dora": 1e-4, "full": 1e-5}
"""By the type of fine-tuning, where no rate is given: big_vision's for all weights, ten times as much for adapters."""
EPOCHS = 10.0
EVALUATIONS = 10
"""How often a run is evaluated, if nothing else is said."""

FREE = ("data", "images", "steps_per_report", "save_every", "patience", "test", "memory_limit")
"""What may be different when a run goes on: nothing that is learnt depends on it. Data is compared by its content."""


@dataclass(frozen=True)
class TrainSettings:
    """The names and the meanings are those of the flags of `pg-mlx train`. Making one raises InputError for values that
    no run can have. Values are plain, so that they can be written as JSON."""

    data: str
    model: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    dtype: str | None = None
    mask_decoder: str | None = None

    prefix: str | None = None
    task: str = "detect"
    images: str | None = None
    per_class: bool = False
    classes: tuple[str, ...] = ()
    label: str = ""
    lowercase: bool = False
    val_share: float = 0.1
    mix: tuple[str, ...] = ()
    augment: tuple[str, ...] = ()
    max_seq_length: int | None = None

    fine_tune_type: Literal["lora", "dora", "full"] = "lora"
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] | str | None = None
    num_layers: int | None = None
    train_vision: bool = False
    train_projector: bool = False
    resume_adapter_file: str | None = None

    batch_size: int = 8
    grad_accumulation_steps: int = 1
    iters: int | None = None
    epochs: float | None = None
    optimizer: Literal["adamw", "sgd", "adafactor"] = "adamw"
    learning_rate: float | None = None
    schedule: Shape = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    loss: Mean = "token"
    label_smoothing: float = 0.0
    final_softcap: bool = True
    grad_checkpoint: bool | None = None
    seed: int = 0

    metrics: tuple[str, ...] = ("loss", *METRICS)
    val_batches: int = 25
    steps_per_eval: int | None = None
    steps_per_report: int = 10
    save_every: int = 100
    patience: int | None = None
    test: bool = False
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if self.iters is not None and self.epochs is not None:
            raise InputError("--iters and --epochs say the same in two ways; give one of them")
        if self.epochs is not None and not 0 < self.epochs < 1e6:
            raise InputError(f"{self.epochs} epochs are not possible")
        for name in (
            "iters",
            "grad_accumulation_steps",
            "steps_per_eval",
            "steps_per_report",
            "save_every",
            "patience",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}, but must be 1 or more")
        if self.val_batches < -1:
            raise InputError(f"--val-batches is {self.val_batches}, but must be 0 (none), more, or -1 (all)")
        if unknown := [name for name in self.metrics if name not in ("loss", *METRICS)]:
            raise InputError(f"there is no metric {unknown[0]!r}, only {', '.join(('loss', *METRICS))}")
        if self.fine_tune_type == "full" and self.resume_adapter_file:
            raise InputError("--resume-adapter-file is where an adapter begins; --fine-tune-type full has none")
        self.loss_options(), self.optimizer_options(), self.schedule_of(max(1, int(self.warmup)))
        if self.fine_tune_type != "full":
            self.low_rank()

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.batch_size * self.grad_accumulation_steps

    @property
    def learns_images(self) -> bool:
        """Whether features of pictures change as it learns."""
        return self.train_vision or self.train_projector

    def data_options(self) -> DataOptions:
        """How data is read."""
        return DataOptions(
            prefix=self.prefix,
            task=self.task,
            images=None if self.images is None else Path(self.images).expanduser(),
            per_class=self.per_class,
            classes=self.classes,
            label=self.label,
            lowercase=self.lowercase,
        )

    def low_rank(self) -> LowRankOptions:
        """How an adapter begins."""
        return LowRankOptions(
            rank=self.lora_rank,
            alpha=self.lora_alpha,
            dropout=self.lora_dropout,
            dora=self.fine_tune_type == "dora",
            target_modules=self.target_modules,
            vision=self.train_vision,
            projector=self.learns_images,
            num_layers=self.num_layers,
            seed=self.seed,
        )

    def loss_options(self) -> LossOptions:
        """What is minimised."""
        return LossOptions(self.loss, self.label_smoothing, self.final_softcap)

    def optimizer_options(self) -> OptimizerOptions:
        """The optimizer. A clip of 0 is none."""
        return OptimizerOptions(self.optimizer, self.weight_decay, clip=self.clip or None)

    def schedule_of(self, steps: int) -> Schedule:
        """The learning rate of each of so many steps."""
        rate = LEARNING_RATES[self.fine_tune_type] if self.learning_rate is None else self.learning_rate
        return Schedule(rate, steps, self.schedule, self.warmup)

    def to_json(self) -> dict[str, Any]:
        """For run.json: plain values by name."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainSettings:
        """From run.json. Raises InputError if a name is unknown, as one that another version wrote."""
        names = {field.name for field in fields(cls)}
        if unknown := values.keys() - names:
            raise InputError(f"run.json has a setting {min(unknown)!r}, which this version does not know")
        plain: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
        return cls(**plain)

    def differs(self, other: TrainSettings) -> str | None:
        """The first setting by which what is learnt may differ, as the flag and both values; None if there is none."""
        mine, theirs = self.to_json(), other.to_json()
        for name, value in mine.items():
            if name not in FREE and value != theirs[name]:
                return f"--{name.replace('_', '-')} {value}, not {theirs[name]}"
        return None
