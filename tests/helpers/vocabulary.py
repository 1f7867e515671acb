"""A small vocabulary of Gemma's kind, trained in a second, in both file forms."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from pg_mlx.processor.tokenizer import LOCATIONS, SEGMENTS

SENTENCES = """\
caption en describe en ocr answer en question en detect segment cap en
a cat sits on a red chair beside a small brown dog and looks at the camera
two people walk along the beach while the sun sets behind the blue mountains
the quick brown fox jumps over the lazy dog near the old wooden bridge
what colour is the car? how many birds are there? where is the cow standing?
a plate with bread, cheese and 3 tomatoes; a glass of water stands on the left
un chat noir dort sur le canapé, ein Hund läuft über die Straße, 犬 と 猫
green yellow white black orange round square triangle circle above below left right
"""


def write_small_tokenizer(folder: Path) -> None:
    """tokenizer.model: BPE with byte fallback, no dummy prefix, nothing normalised, <pad> <eos> <bos> <unk> first."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES.splitlines() * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=1800,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=["\n", "\n\n", *LOCATIONS, *SEGMENTS],
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def write_small_tokenizer_json(folder: Path) -> None:
    """tokenizer.json with the pieces and ids of folder's tokenizer.model, and <image> behind them."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, models, normalizers

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    # Trained pieces come in the order in which BPE merged them; any split into two known pieces may be the merge.
    merges = [
        (piece[:cut], piece[cut:])
        for piece, i in vocabulary.items()
        if not model.is_control(i) and not model.is_byte(i) and not piece.startswith("<") and len(piece) > 1
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in ("<pad>", "<eos>", "<bos>", "<unk>")])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in ["\n\n", "\n", *LOCATIONS, *SEGMENTS]])
    tokenizer.add_special_tokens([AddedToken("<image>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))


FORMS = ["tokenizer.model", "tokenizer.json"]


def train(path: Path, **options: Any) -> None:
    """Write a vocabulary of SentencePiece made from SENTENCES. options: of its trainer."""
    import sentencepiece

    settings = dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>")
    settings |= dict(byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False)
    settings |= dict(normalization_rule_name="identity", vocab_size=500, hard_vocab_limit=False, minloglevel=2)
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES.splitlines()), model_writer=file, model_type="bpe", **settings | options
        )
