"""tokenizer.json made from tokenizer.model: the same pieces, and text cut in the same places."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from helpers.paths import PUBLISHED_TOKENIZER, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from pg_mlx.conversion.tokenizer_json import read_pieces, write_tokenizer_json
from pg_mlx.errors import InputError
from pg_mlx.processor import Tokenizer

SMALL = ROOT / "tools" / "small_tokenizer" / "tokenizer.model"
PUBLISHED = PUBLISHED_TOKENIZER / "tokenizer.model"
MODELS = [
    pytest.param(SMALL, id="small"),
    pytest.param(PUBLISHED, id="published", marks=pytest.mark.skipif(not PUBLISHED.is_file(), reason="not here")),
]
TEXTS = [
    "caption en",
    "detect cat ; dog <loc0123><loc1023><seg000>",
    "  two  spaces   three\n\n\nnewlines\t\ttabs ",
    "Übergrößenträger 12345 犬と猫 🐱‍👤 don't can't",
    "a = [1, 2, 3]; for i in range(10): print(i ** 2)",
    "",
    "supercalifragilisticexpialidocious",
]


Pair = tuple[Tokenizer, tokenizers.Tokenizer, Path]


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The original, what reads the file that was made of it, and that file."""
    made = tmp_path_factory.mktemp("made") / "tokenizer.json"
    write_tokenizer_json(request.param, made)
    return Tokenizer.from_file(request.param), tokenizers.Tokenizer.from_file(str(made)), made


def test_same_pieces_and_image_last(pair: Pair) -> None:
    original, raw, made = pair
    assert Tokenizer.from_file(made).vocab_size == original.vocab_size
    assert raw.token_to_id("<image>") == original.vocab_size
    assert [raw.token_to_id(piece) for piece in ("<pad>", "<eos>", "<bos>", "<unk>")] == [0, 1, 2, 3]
    assert raw.token_to_id("<loc0000>") == original.location_ids[0]


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids_and_the_text_back(pair: Pair, text: str) -> None:
    original, raw, _ = pair
    ids = raw.encode(text, add_special_tokens=False).ids
    assert ids == original.encode(text)
    assert raw.decode(ids) == text


def test_same_ids_for_any_text(tmp_path: Path) -> None:
    write_tokenizer_json(SMALL, tmp_path / "tokenizer.json")
    original, made = Tokenizer.from_file(SMALL), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=40))
    def check(text: str) -> None:
        assert made.encode(text, add_special_tokens=False).ids == original.encode(text)

    check()


def test_plain_gemma_gets_its_regions(tmp_path: Path) -> None:
    """A vocabulary without <loc> and <seg>, as Gemma's own is: they are appended, then <image>."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a cat sits on a red chair"] * 9), model_writer=model, model_type="bpe", vocab_size=300,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
        unk_piece="<unk>", byte_fallback=True, add_dummy_prefix=False, normalization_rule_name="identity",
        user_defined_symbols=["\n"], hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    write_tokenizer_json(tmp_path / "tokenizer.model", tmp_path / "tokenizer.json")
    rows = len(list(read_pieces(model.getvalue())))
    raw = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert raw.token_to_id("<loc0000>") == rows and raw.token_to_id("<image>") == rows + 1152


@pytest.mark.parametrize("content", [b"", b"no model", b"\x0a\xff", bytes(100)])
def test_refuses_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(InputError, match="not a SentencePiece model"):
        write_tokenizer_json(tmp_path / "tokenizer.model", tmp_path / "tokenizer.json")
    assert not (tmp_path / "tokenizer.json").exists()
