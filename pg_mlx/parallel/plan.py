"""Which part of a model each rank holds.

A part is a checkpoint of its own: the same tensors, or some rows and columns of them (source.py), under a smaller
config. So loading, memory estimates and the model itself do with it what they do with a whole checkpoint.

    pipeline   rank 0 has the vision tower, the embedding (which is the head), and the first layers;
               the last rank has the last layers and the final norm
    tensor     rank 0 has the vision tower and the whole embedding; every rank has some heads and some of the MLP of
               every layer, and of the head's rows its own
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..checkpoint.adapters.merge import AdaptedSource
from ..checkpoint.check import packing
from ..checkpoint.layouts import EMBEDDING, HEAD, TEXT, WeightSpec, weight_specs
from ..checkpoint.open import Checkpoint
from ..config import PaliGemmaConfig, TextConfig, VisionConfig
from ..errors import InputError
from .shares import cut
from .source import Cut, PartSource

FAST_COLUMNS = 512
"""Metal multiplies a matrix packed in 2 to 5 bits faster if its columns are a multiple of this; in 6 or 8 bits, of half
of it (docs/performance.md)."""

_LAYER = re.compile(r"(language_model\.layers\.)([0-9]+)(\..+)")


@dataclass(frozen=True)
class RankPart:
    """What a rank holds of a checkpoint."""

    checkpoint: Checkpoint
    about: str
    """The part in words."""
    vocabulary: tuple[range, ...] = ()
    """Which rows of the head each rank has, if they are divided."""


def pipeline_part(checkpoint: Checkpoint, rank: int, shares: Sequence[int]) -> RankPart:
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
    return RankPart(_with(checkpoint, text, specs, whole=first), about)


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
    return replace(config, vision=nothing, text=replace(config.text, vocab_size=rows))


def part_of(checkpoint: Checkpoint, mode: str, rank: int, shares: Sequence[int]) -> RankPart:
    """A rank's part. Raises InputError where the checkpoint cannot be cut."""
    return (pipeline_part if mode == "pipeline" else tensor_part)(checkpoint, rank, shares)


def tensor_part(checkpoint: Checkpoint, rank: int, shares: Sequence[int]) -> RankPart:
    """Some heads, some of the MLP and some of the head's rows. Raises InputError if they cannot be cut for so many
    ranks, and for a checkpoint with an adapter."""
    if isinstance(checkpoint.source, AdaptedSource):
        raise InputError("--parallel tensor cannot divide an adapter: use --parallel pipeline, or merge it (convert)")
    config = checkpoint.config
    text = config.text
    heads, kv_heads = _heads(checkpoint, shares)[rank]
    mlp = _cut_columns(checkpoint, "mlp.down_proj", text.intermediate_size, 1, shares, "columns of the MLP")[rank]
    vocabulary = tuple(cut(text.vocab_size, 1, shares, "rows of the head"))
    first = rank == 0
    local = replace(
        config,
        text=replace(
            text, num_attention_heads=len(heads), num_key_value_heads=len(kv_heads), intermediate_size=len(mlp)
        ),
    )
    if not first:
        local = followers_config(local, len(vocabulary[rank]))
    queries, width = scaled(heads, text.head_dim), text.num_attention_heads * text.head_dim
    cuts = {
        "self_attn.q_proj": Cut(0, queries, 0),
        "self_attn.k_proj": Cut(0, scaled(kv_heads, text.head_dim), 0),
        "self_attn.v_proj": Cut(0, scaled(kv_heads, text.head_dim), 0),
        "self_attn.o_proj": Cut(1, queries, width),
        "mlp.gate_proj": Cut(0, mlp, 0),
        "mlp.up_proj": Cut(0, mlp, 0),
        "mlp.down_proj": Cut(1, mlp, text.intermediate_size),
    }
    tables = {} if first else dict.fromkeys((EMBEDDING, HEAD), Cut(0, vocabulary[rank], 0))

    def cut_of(module: str) -> Cut | None:
        name = ".".join(module.rsplit(".", 2)[1:])
        return cuts.get(name) if module.startswith(f"{TEXT}.layers.") else tables.get(module)

    specs = [spec for spec in weight_specs(local) if first or _follows(spec, config.tie_word_embeddings)]
    about = (
        f"heads {heads.start + 1} to {heads.stop} of {text.num_attention_heads} with {len(kv_heads)} of "
        f"{text.num_key_value_heads} key heads, {len(mlp)} of {text.intermediate_size} columns of the MLP"
    )
    source = PartSource(checkpoint.source, cut_of)
    return RankPart(replace(checkpoint, source=source, config=local, specs=tuple(specs)), about, vocabulary)


def _follows(spec: WeightSpec, tied: bool) -> bool:
    """Whether a rank above 0 needs it: of the two tables, only the head."""
    embedding = spec.target == "language_model.embed_tokens"
    return spec.target.startswith("language_model.") and (tied or not embedding)


def _heads(checkpoint: Checkpoint, shares: Sequence[int]) -> list[tuple[range, range]]:
    """Each rank's query heads, and the heads of keys and values that they read. Where there are fewer of the latter
    than ranks, several ranks hold the same one."""
    text, ranks = checkpoint.config.text, len(shares)
    group = text.num_attention_heads // text.num_key_value_heads
    whole = group if text.num_key_value_heads >= ranks else 1
    width = text.num_attention_heads * text.head_dim
    columns = _cut_columns(checkpoint, "self_attn.o_proj", width, whole * text.head_dim, shares, "attention outputs")
    found = []
    for part in columns:
        heads = range(part.start // text.head_dim, part.stop // text.head_dim)
        kv_heads = range(heads.start // group, (heads.stop - 1) // group + 1)
        if len(kv_heads) > 1 and (heads.start % group or heads.stop % group):
            raise InputError(
                f"{text.num_key_value_heads} heads of keys and values cannot be divided among {ranks} ranks"
            )
        found.append((heads, kv_heads))
    return found


def _cut_columns(
    checkpoint: Checkpoint, name: str, columns: int, unit: int, shares: Sequence[int], what: str
) -> list[range]:
    """The columns of the matrices of this name, cut in multiples of `unit` that keep a GPU's fast kernels; where there
    are too few for that, in whole groups of packed weights."""
    shapes = checkpoint.source.shapes
    modules = [
        source for spec in checkpoint.specs for source in spec.sources if source.endswith(name) and TEXT in source
    ]
    packings = [
        packing(shapes, module, columns, checkpoint.config) for module in modules if f"{module}.scales" in shapes
    ]
    fast = max((FAST_COLUMNS if q.bits < 6 else FAST_COLUMNS // 2 for q in packings), default=FAST_COLUMNS)
    least = max((q.group_size for q in packings), default=1)
    for wanted in (math.lcm(unit, fast), math.lcm(unit, least)):
        if columns % wanted == 0 and columns // wanted >= len(shares):
            return cut(columns, wanted, shares, what)
    return cut(columns, math.lcm(unit, least), shares, what)


def scaled(part: range, factor: int) -> range:
    """The range of the columns (or rows) of a range of heads that have `factor` each."""
    return range(part.start * factor, part.stop * factor)
