"""The memory of a calibration and of its judging, and of measuring what each matrix is worth, counted from shapes."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from ..checkpoint.footprint import needed_bytes
from ..checkpoint.layouts import EMBEDDING
from ..checkpoint.load import compute_dtype
from ..checkpoint.open import Checkpoint
from ..config import PaliGemmaConfig
from ..memory.estimate import pass_bytes
from ..memory.residency import SMALL_BYTES
from ..memory.size import machine_bytes
from ..ops import device
from ..quantization import gptq
from ..quantization.gptq import column_blocks
from .calibrate import calibrated_modules, tokens_at_once
from .metrics import POSITIONS, ROWS
from .plan import Module
from .sensitivity import HELD_BYTES, held_bytes
from .target import MAX_MEASURING

TEXT_TOKENS = 96
"""Tokens of a prompt and its answer, at most about."""

ROOM = 0.75
"""The share of the machine's memory that the source may take as a whole."""

_FLOAT = 4
_FACTOR = 4
"""Matrices [columns, columns] at a time while a factor is computed. Beside them there are the two sums of each block of
columns."""
_COPIES, _COPIES_AT_ONCE, _COPIES_OF_GROUPS = 3, 5, 7
"""Copies of one matrix while it is corrected, of the outputs whose codes are chosen at once, and of one group of their
columns while its scales are fitted."""


def source_bytes(checkpoint: Checkpoint) -> int:
    """What the source takes as a whole while it answers; 0 if that is more than ROOM, so that it is not loaded."""
    needed = needed_bytes(checkpoint, compute_dtype(None))
    return needed if needed <= ROOM * machine_bytes() else 0


def pixel_bytes(config: PaliGemmaConfig, pictures: int) -> int:
    """What so many pictures take, which are in memory from the first step to the last."""
    return _FLOAT * 3 * pictures * config.vision.image_size**2


def answering_peak(modules: Sequence[Module], config: PaliGemmaConfig, file_bytes: int, item_bytes: int) -> int:
    """Bytes at the most while a packed result is loaded and answers about one picture, as footprint.needed_bytes counts
    for a checkpoint that is there.

    file_bytes: of its weights as they are written; item_bytes: of a float in them. The model may compute in another
    dtype.
    """
    dtype = compute_dtype(None)
    held = file_bytes + sum(module.bytes_after(dtype.size) - module.bytes_after(item_bytes) for module in modules)
    largest = max((module.bytes_after(dtype.size) for module in modules if module.kind == "linear"), default=0)
    growth = sum(_FLOAT * m.padded[0] * m.padded[1] - m.bytes_after(dtype.size) for m in modules if m.target)
    if not device.gpu_ops() and dtype == mx.float32 and growth <= SMALL_BYTES:  # it is unpacked: see residency
        held += growth
    tower, decoder = (
        next((module.target for module in modules if module.name.endswith(name) and module.target), None)
        for name in ("mlp.fc1", "mlp.gate_proj")
    )
    return held + max(2 * largest, pass_bytes(config, dtype, tower, decoder))


def judging_peak(
    modules: Sequence[Module], config: PaliGemmaConfig, pictures: int, texts: int, before: int, after: int
) -> int:
    """Bytes at the most while a result is judged: both embeddings as stored, the largest block in float32 with the
    parts it is assembled from, features and inputs, and the work on one text or on a slice of both heads.

    before, after: bytes of a float in the source and in the result.
    """
    tables = sum(m.bytes_before(before) + m.bytes_after(after) for m in modules if m.kind == "embedding")
    tokens = config.vision.num_patches + TEXT_TOKENS
    inputs = _FLOAT * (pictures * config.vision.num_patches + texts * tokens) * config.text.hidden_size
    heads = _FLOAT * ROWS * (4 * config.text.hidden_size + 6 * POSITIONS)
    return tables + max(2 * _largest_block(modules) + _work(config, tokens), heads) + inputs


def calibration_peak(
    modules: Sequence[Module], config: PaliGemmaConfig, pictures: int, texts: int, item_bytes: int
) -> int:
    """Bytes at the most while `texts` about `pictures` calibrate: the embedding as stored, the largest block as it is
    and as it becomes, the squares of the columns of a matrix, the inputs of both paths, and the work on some of them.

    item_bytes: of a stored float.
    """
    table = sum(module.bytes_before(item_bytes) for module in modules if module.name == EMBEDDING)
    squares = copies = 0
    calibrated = calibrated_modules(modules).values()
    head_table = 0
    for module in calibrated:
        values = module.padded[0] * module.columns
        assert module.target is not None
        copies_of_an_output = _COPIES_AT_ONCE * module.columns + _COPIES_OF_GROUPS * module.target.group_size
        at_once = _FLOAT * min(values, gptq.VALUES) // module.columns * copies_of_an_output
        if module.kind == "embedding":
            head_table = module.bytes_after(item_bytes) + at_once + _FLOAT * _FACTOR * module.columns**2
            continue
        sizes = [own.stop - own.start for own in column_blocks(module.padded[1])]
        squares = max(squares, _FLOAT * (2 * sum(size**2 for size in sizes) + _FACTOR * max(sizes) ** 2))
        copies = max(copies, _FLOAT * _COPIES * values + at_once)
    text, images = config.text, config.vision.num_patches
    features = 2 * _FLOAT * pictures * images * text.hidden_size
    hidden = _FLOAT * texts * TEXT_TOKENS * text.hidden_size
    inputs = (
        2
        * _FLOAT
        * max(texts * (images + TEXT_TOKENS) * text.hidden_size, pictures * images * config.vision.hidden_size)
    )
    tokens = min(max(tokens_at_once(config), images + TEXT_TOKENS), texts * (images + TEXT_TOKENS))
    in_a_block = 2 * _largest_block(modules) + max(squares + _work(config, tokens), copies)
    return table + hidden + inputs + max(in_a_block, features, head_table)  # features: gone once the inputs are made


def _largest_block(modules: Sequence[Module]) -> int:
    """Bytes in float32 of the matrices of the largest block."""
    blocks: dict[str, int] = {}
    for module in modules:
        if module.kind == "linear":
            block = module.name.rsplit(".", 2)[0]
            blocks[block] = blocks.get(block, 0) + _FLOAT * module.rows * module.columns
    return max(blocks.values(), default=0)


def _work(config: PaliGemmaConfig, tokens: int) -> int:
    """Bytes of what a block computes for so many tokens at a time."""
    return 3 * _FLOAT * tokens * 2 * config.text.intermediate_size


def measuring_peak(modules: Sequence[Module], config: PaliGemmaConfig, pictures: int, item_bytes: int) -> int:
    """Bytes at the most while sensitivities are measured: the embedding as stored, the largest block in float32 and
    three more of its largest matrix, the variants and the source's own inputs, and a slice of both heads with its
    logits. item_bytes: of a stored float."""
    table = sum(module.bytes_before(item_bytes) for module in modules if module.name == EMBEDDING)
    largest = max((_FLOAT * module.rows * module.columns for module in modules if module.kind == "linear"), default=0)
    count = min(pictures, MAX_MEASURING)
    one = held_bytes(config, count, [TEXT_TOKENS] * count)
    held = max(one, min(HELD_BYTES, len(modules) * one))
    text, tokens = config.text, config.vision.num_patches + TEXT_TOKENS
    work = _FLOAT * tokens * (3 * 2 * text.intermediate_size + 2 * text.num_attention_heads * tokens)
    heads = _FLOAT * ROWS * (4 * text.hidden_size + 6 * POSITIONS)
    return table + _largest_block(modules) + 3 * largest + held + 3 * one + max(work, heads)
