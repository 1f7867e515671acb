"""The demo's SentencePiece vocabulary, in the manner of Gemma's: no dummy prefix, digits one by one, bytes for the
rest, and PaliGemma's 1,024 `<loc>` and 128 `<seg>` pieces at the end, matched wherever they stand."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from demo.scenes import COLORS, SHAPES, TRAIN_SEEDS, WORDS, make_scene
from demo.tasks import TASKS, ask

REGIONS = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]


def sentences() -> Iterator[str]:
    """What is asked and answered about training scenes, without boxes."""
    rng = np.random.default_rng(0)
    for seed in TRAIN_SEEDS[:3000]:
        scene = make_scene(seed)
        for task in TASKS:
            question = ask(scene, task, rng, lambda item: [])
            yield question.prompt
            yield question.answer.split(">")[-1]
    for word in WORDS:
        yield from [word, f" {word}"] * 30
    for color in COLORS:
        for shape in SHAPES:
            yield from [f"detect {color} {shape} ; {shape}", f"segment {color} {shape}"] * 10


def make_vocabulary(path: Path) -> None:
    """Train it and write tokenizer.model."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(),
        model_writer=model,
        model_type="bpe",
        vocab_size=4 + 1 + len(REGIONS) + 256 + 330,
        hard_vocab_limit=False,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", unk_piece="<unk>",
        user_defined_symbols=["\n", *REGIONS],
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
