"""Which part of a model each rank holds.

A part is a checkpoint of its own: the same tensors, or some rows and columns of them (source.py), under a smaller
config. So loading, memory estimates and the model itself do with it what they do with a whole checkpoint.

    pipeline   rank 0 has the vision tower, the embedding (which is the head), and the first layers;
               the last rank has the last layers and the final norm
    tensor     rank 0 has the vision tower and the whole embedding; every rank has some heads and some of the MLP of
               every layer, and of the head's rows its own
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..checkpoint.layouts import WeightSpec
from ..checkpoint.open import Checkpoint
from ..config import PaliGemmaConfig, TextConfig, VisionConfig
from ..errors import InputError
from .shares import MODES, cut

_LAYER = re.compile(r"(language_model\.layers\.)([0-9]+)(\..+)")


@dataclass(frozen=True)
class Part:
    """What a rank holds of a checkpoint."""

    checkpoint: Checkpoint
    about: str
    """The part in words."""


def pipeline_part(checkpoint: Checkpoint, rank: int, shares: Sequence[int]) -> Part:
    """Some layers. shares: one number for each rank. Raises InputError if there are fewer layers than ranks."""
    config = checkpoint.config
    layers = cut(config.text.num_hidden_layers, 1, shares, "layers")[rank]
    first, last = rank == 0, rank == len(shares) - 1
    text = replace(
        config.text,
        num_hidden_layers=len(layers),
        sliding_layers=config.text.sliding_layers[layers.start : layers.stop],
    )
    specs = []
    for spec in checkpoint.specs:
        if found := _LAYER.fullmatch(spec.target):
            if int(found[2]) in layers:
                specs.append(replace(spec, target=f"{found[1]}{int(found[2]) - layers.start}{found[3]}"))
        elif last if spec.target == "language_model.norm" else first:
            specs.append(spec)
    about = f"layers {layers.start + 1} to {layers.stop} of {config.text.num_hidden_layers}"
    return Part(_with(checkpoint, text, specs, whole=first), about)


def _with(checkpoint: Checkpoint, text: TextConfig, specs: Sequence[WeightSpec], whole: bool) -> Checkpoint:
    """The checkpoint with another decoder. whole: with tower and tables, which otherwise shrink to nothing."""
    config = replace(checkpoint.config, text=text)
    if not whole:
        config = followers_config(config)
    return replace(checkpoint, config=config, specs=tuple(specs))


def followers_config(config: PaliGemmaConfig, rows: int = 1) -> PaliGemmaConfig:
    """The config of a part without a vision tower, and with so many rows of the embedding."""
    patch = config.vision.patch_size
    nothing = VisionConfig(
        hidden_size=1, intermediate_size=1, num_hidden_layers=0, num_attention_heads=1, image_size=patch,
        patch_size=patch,
    )  # fmt: skip
    return replace(config, vision=nothing, text=replace(config.text, vocab_size=rows), tie_word_embeddings=True)


def part_of(checkpoint: Checkpoint, mode: str, rank: int, shares: Sequence[int]) -> Part:
    """A rank's part. Raises InputError where the checkpoint cannot be cut."""
    if mode == "pipeline":
        return pipeline_part(checkpoint, rank, shares)
    raise InputError(f"--parallel {mode} is not one of {', '.join(MODES)}")
