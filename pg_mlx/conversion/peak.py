"""The memory of a calibration, and of measuring what each matrix is worth, counted from shapes."""

from __future__ import annotations

from collections.abc import Sequence

from ..checkpoint.footprint import needed_bytes
from ..checkpoint.layouts import EMBEDDING
from ..checkpoint.load import compute_dtype
from ..checkpoint.open import Checkpoint
from ..config import PaliGemmaConfig
from ..memory.size import machine_bytes
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
_COPIES = 4
"""Copies of one matrix at a time while its codes are chosen."""


def source_bytes(checkpoint: Checkpoint) -> int:
    """What the source takes as a whole while it answers; 0 if that is more than ROOM, so that it is not loaded."""
    needed = needed_bytes(checkpoint, compute_dtype(None))
    return needed if needed <= ROOM * machine_bytes() else 0


def calibration_peak(modules: Sequence[Module], config: PaliGemmaConfig, pictures: int, item_bytes: int) -> int:
    """Bytes at the most while `pictures` calibrate: the embedding as stored, the largest block as it is and as it
    becomes, the squares of the columns of a matrix, the inputs of both paths, and the work on some of them.

    item_bytes: of a stored float.
    """
    table = sum(module.bytes_before(item_bytes) for module in modules if module.name == EMBEDDING)
    blocks: dict[str, int] = {}
    squares = copies = 0
    calibrated = calibrated_modules(modules)
    for module in modules:
        if module.kind == "linear":
            values = module.rows * module.columns
            block = module.name.rsplit(".", 2)[0]
            blocks[block] = blocks.get(block, 0) + 2 * _FLOAT * values
            if module.name in calibrated:
                sizes = [own.stop - own.start for own in column_blocks(module.padded[1])]
                squares = max(squares, _FLOAT * (2 * sum(size**2 for size in sizes) + _FACTOR * max(sizes) ** 2))
                copies = max(copies, _FLOAT * _COPIES * values)
    text = config.text
    images = config.vision.num_patches
    inputs = 2 * _FLOAT * pictures * max((images + TEXT_TOKENS) * text.hidden_size, images * config.vision.hidden_size)
    tokens = min(max(tokens_at_once(config), images + TEXT_TOKENS), pictures * (images + TEXT_TOKENS))
    work = 3 * _FLOAT * tokens * 2 * text.intermediate_size
    return table + max(blocks.values(), default=0) + max(squares + work, copies) + inputs


def measuring_peak(modules: Sequence[Module], config: PaliGemmaConfig, pictures: int, item_bytes: int) -> int:
    """Bytes at the most while sensitivities are measured: the embedding as stored, the largest block in float32 and
    three more of its largest matrix, the variants and the source's own inputs, and a slice of both heads with its
    logits. item_bytes: of a stored float."""
    table = sum(module.bytes_before(item_bytes) for module in modules if module.name == EMBEDDING)
    blocks: dict[str, int] = {}
    largest = 0
    for module in modules:
        if module.kind == "linear":
            block = module.name.rsplit(".", 2)[0]
            blocks[block] = blocks.get(block, 0) + _FLOAT * module.rows * module.columns
            largest = max(largest, _FLOAT * module.rows * module.columns)
    count = min(pictures, MAX_MEASURING)
    one = held_bytes(config, count, [TEXT_TOKENS] * count)
    held = max(one, min(HELD_BYTES, len(modules) * one))
    text, tokens = config.text, config.vision.num_patches + TEXT_TOKENS
    work = _FLOAT * tokens * (3 * 2 * text.intermediate_size + 2 * text.num_attention_heads * tokens)
    heads = _FLOAT * ROWS * (4 * text.hidden_size + 6 * POSITIONS)
    return table + max(blocks.values(), default=0) + 3 * largest + held + 3 * one + max(work, heads)
